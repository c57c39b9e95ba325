"""One host of several, as a process: prints the digest of each of its rows, a line a batch.

python -m tests.helpers.reader '{"config": {...}, "tokenizer": ..., "cache": ..., "start": 0,
    "stop": 9, "host": 0, "hosts": 2}'
"""

import hashlib
import itertools
import json
import sys

import numpy as np

from research.batch import Batch
from research.config import schema
from research.data.config import DataConfig
from research.data.pipeline import Pipeline
from research.text import tokenizer

FIELDS = ("tokens", "targets", "weights", "segments", "positions")


def share(host: int, hosts: int, rows: int) -> range:
    """The rows of one of so many hosts, where each feeds as many."""
    return range(host * rows // hosts, (host + 1) * rows // hosts)


def digests(batch: Batch) -> list[str]:
    """One a row, of everything that it holds."""
    fields = [np.ascontiguousarray(getattr(batch, field)) for field in FIELDS]
    return [
        hashlib.sha256(b"".join(field[row].tobytes() for field in fields)).hexdigest()
        for row in range(len(batch.tokens))
    ]


def main() -> None:
    settings = json.loads(sys.argv[1])
    pipeline = Pipeline(
        schema.build(DataConfig, settings["config"]),
        tokenizer.load(settings["tokenizer"]),
        settings["cache"],
    )
    rows = share(settings["host"], settings["hosts"], pipeline.config.batch_size)
    batches = pipeline.batches(settings["start"], rows)
    for batch in itertools.islice(batches, settings["stop"] - settings["start"]):
        print(json.dumps(digests(batch)), flush=True)


if __name__ == "__main__":
    main()
