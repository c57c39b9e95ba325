"""A process that opens what torture has damaged, one question after another.

A question is a line of JSON on standard input (`kind`, `path`, `world`); the answer, a line on the
file descriptor that standard output had, is the digest of what was opened, or the error.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.config import schema
from research.data.pipeline import Pipeline
from research.data.sources import PreparedConfig, open_source
from research.interop import importing
from research.interop.peft import importing as peft_importing
from research.runtime import children
from research.text import tokenizer as tokenizers
from tests.helpers import tiny_run

MEMORY = 8 * 2**30  # bytes: a few kilobytes of input need no more


def digest_run(run: Run) -> str:
    """Of all that the run's model and tokenizer are."""
    hasher = hashlib.sha256()
    arrays = run.checkpoint.restore(run.checkpoint.abstract())
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        hasher.update(f"{name} {array.dtype} {array.shape} ".encode())
        hasher.update(array.tobytes())
    model = schema.to_dict(run.model)
    parts = [model, run.method.kind, run.tokenizer.fingerprint(), run.tokenizer.roles]
    hasher.update(json.dumps(parts, sort_keys=True, default=str).encode())
    for name, content in sorted(run.sidecar_files.items()):
        hasher.update(name.encode() + (content if isinstance(content, bytes) else b""))
    return hasher.hexdigest()


def open_run(path: Path, world: Path) -> str:
    return digest_run(runs.open_run(path))


def open_tokenizer(path: Path, world: Path) -> str:
    tokenizer = tokenizers.load(path)
    return f"{tokenizer.fingerprint()} {tokenizer.encode('red leaves fall on 3 roofs.')}"


def open_model(path: Path, world: Path) -> str:
    """A folder of transformers, or a file of llama.cpp: imported, and opened then."""
    with tempfile.TemporaryDirectory() as folder:
        model = importing.open_model(path)
        importing.load_tokenizer(model)
        importing.import_model(model, Path(folder) / "run", lambda name, size: None)
        return digest_run(runs.open_run(Path(folder) / "run"))


def open_adapter(path: Path, world: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        peft_importing.import_adapter(path, runs.open_run(world / "imported"), out)
        return digest_run(runs.open_run(out))


def open_cache(path: Path, world: Path) -> str:
    """Batches of sources that were tokenized before."""
    cache = path / "tokens"
    tiny = tiny_run.World(world)
    data = Pipeline(tiny.data(), tokenizers.load(world / "tokenizer.json"), cache, 288)
    hasher = hashlib.sha256()
    for step in range(4):
        batch = data.batch(step)
        hasher.update(np.asarray(batch.tokens).tobytes() + np.asarray(batch.weights).tobytes())
    return hasher.hexdigest()


def open_prepared(path: Path, world: Path) -> str:
    source = open_source(PreparedConfig("prepared", str(path)), "train")
    rows = [str(source[index]) for index in range(len(source))]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


KINDS = {
    "run": open_run,
    "tokenizer": open_tokenizer,
    "model": open_model,
    "adapter": open_adapter,
    "cache": open_cache,
    "prepared": open_prepared,
}


def answer(question: dict[str, Any]) -> dict[str, str]:
    try:
        path, world = Path(question["path"]), Path(question["world"])
        return {"digest": KINDS[question["kind"]](path, world)}
    except (ValueError, OSError) as error:  # those that programs print as one line
        return {"error": f"{error}"}
    except BaseException as error:
        import traceback

        return {"traceback": "".join(traceback.format_exception(error))}


def main() -> None:
    children.follow_parent()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
