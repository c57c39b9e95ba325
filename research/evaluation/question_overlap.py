"""Questions that a run trains on: equal to what one of its training rows asks.

Equal as `research.data.overlap` has it, but for case, white space and compatible characters. Of a
conversation what its user says is compared, up to the last answer; of a row without a question its
text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.data import overlap
from research.data.examples import open_texts
from research.data.pipeline import Pipeline
from research.data.run_checks import name_pairs
from research.data.token_cache import default_cache, encode
from research.text.normalize import normalize
from research.text.token_table import Encoded


def question_hash(record: Mapping[str, Any]) -> int:
    """64 bits of what a record asks, or of its text; 0 where there is neither."""
    messages = record.get("messages")
    if isinstance(messages, list | tuple):
        user_messages = [message for message in messages if message.get("role") == "user"]
        texts = [message.get("content") for message in user_messages]
    else:
        texts = [record.get("prompt", record.get("text"))]
    normal = [normalize(t if isinstance(t, str) else json.dumps(t)) for t in texts if t]
    if not any(normal):
        return 0
    digest = hashlib.blake2b(json.dumps(normal).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


class _QuestionHashes:
    """An `Encoder`: `question_hash` of each row."""

    types, key = {"hash": np.dtype(np.uint64)}, {"user_hashes": 1}

    def __init__(self) -> None:
        self._hashes: list[list[int]] = []

    def add(self, example: Mapping[str, Any], where: str) -> int:
        self._hashes.append([question_hash(example)])
        return sum(len(str(value)) for value in example.values())

    def take(self) -> dict[str, Encoded]:
        hashes, self._hashes = self._hashes, []
        return {"hash": Encoded(hashes, [0] * len(hashes))}


def check_questions(
    rows_by_task: Mapping[str, Sequence[tuple[int, Mapping[str, Any]]]],
    data: Pipeline,
    max_share: float,
) -> None:
    """Refuses tasks of which more than a share is trained on.

    Args:
      rows_by_task: task -> (row, record) of each of its questions or texts.
      data: what is trained on; read and hashed once, and kept in the cache.
      max_share: 1 looks for none.

    Raises:
      ValueError: naming the task and the rows.
    """
    if max_share == 1:
        return
    sources, cache = data.config.sources, default_cache()
    tables = [
        encode(open_texts(source, source.split, data.tokenizer), _QuestionHashes(), cache)
        for source in sources
    ]
    trained = [np.asarray(table["hash"].values) for table in tables]
    names = [f"{source.name}:{source.split}" for source in sources]
    for task, rows in rows_by_task.items():
        hashes = np.asarray([question_hash(record) for _, record in rows], np.uint64)
        pairs = overlap.find_shared(hashes, trained)
        if len(pairs) <= max_share * len(rows):
            continue
        numbers = np.asarray([row for row, _ in rows])
        of_split = overlap.Pairs(numbers[pairs.rows], pairs.places, pairs.others)
        raise ValueError(
            f"{task}: {len(pairs):,} of {len(rows):,} questions are trained on too: "
            f"{name_pairs(of_split, names)}. Ask others, or remove them from the training data; "
            f"checks.overlap allows a share of them, now {max_share:.2%}."
        )
