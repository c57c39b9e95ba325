"""Questions of a test that stand in what a model was tuned on, or is about to be.

They are equal if their messages are, but for case, white space and compatible forms of characters
(NFKC), whatever was answered; every answer of a conversation has a question. Of a run that was
trained only examples are looked through, prompts and conversations: plain text is the business of
`graft prepare`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.checkpoints.runs import Run
from research.data.examples import open_texts
from research.data.overlap import Pairs, find_shared
from research.data.pipeline import Pipeline
from research.data.run_checks import name_pairs
from research.data.sources import Source, SourceConfig, open_source
from research.data.token_cache import default_cache, encode
from research.evaluation.questions import Question
from research.text.conversation import Conversation, from_messages
from research.text.normalize import normalize
from research.text.token_table import Encoded, Ragged


@dataclasses.dataclass(frozen=True)
class TrainingQuestions:
    """The questions of all examples that a run and its bases were tuned on."""

    # source -> uint64 hashes of the questions of each row: one for every answer
    hashes: Mapping[str, Ragged]
    # sources that cannot be read here, each with the reason
    unread: Sequence[str] = ()

    def find(self, questions: Sequence[Question]) -> tuple[np.ndarray, str]:
        """Which questions [N] are among them, and the first of these by their rows."""
        hashes = np.asarray([hash_question(each.conversation) for each in questions], np.uint64)
        pairs = _find_asked(hashes, list(self.hashes.values()))
        is_trained = np.zeros(len(questions), bool)
        is_trained[pairs.rows] = True
        rows = np.asarray([each.row for each in questions], np.int64)
        named_by_row = dataclasses.replace(pairs, rows=rows[pairs.rows])
        return is_trained, name_pairs(named_by_row, list(self.hashes))


def read_training_questions(run: Run) -> TrainingQuestions:
    """The questions that a run was tuned on, and those of its bases; read once, then cached."""
    hashes: dict[str, Ragged] = {}
    unread = []
    stage: Run | None = run
    while stage is not None:
        sources = stage.experiment.data.sources if stage.experiment else ()
        for config in sources:
            name = f"{config.name}:{config.split}"
            try:
                rows = _hash_source(config)
            except (OSError, ValueError) as error:
                unread.append(f"{name} ({str(error):.120})")
                continue
            if rows is not None:
                while name in hashes:  # a base's source of the same name
                    name += "'"
                hashes[name] = rows
        stage = stage.base
    return TrainingQuestions(hashes, unread)


def hash_question(conversation: Conversation) -> int:
    """64 bits of what is asked."""
    messages = [
        [message["role"], normalize(content) if isinstance(content, str) else content]
        for message in conversation.messages
        for content in [message.get("content")]
    ]
    content = json.dumps(messages, sort_keys=True, default=repr)
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little")


def hash_questions(record: Mapping[str, Any]) -> list[int]:
    """64 bits of each question of a record: of a conversation, what stands before each answer and
    what waits for one; of others the prompt, or the text."""
    messages = record.get("messages")
    if isinstance(messages, list) and messages:
        ends = [n for n, message in enumerate(messages) if n and message["role"] == "assistant"]
        if not ends or messages[-1]["role"] != "assistant":
            ends.append(len(messages))
        return [hash_question(from_messages(messages[:end])) for end in ends]
    if isinstance(record.get("prompt"), str):
        return [hash_question(from_messages([{"role": "user", "content": record["prompt"]}]))]
    text = record.get("text")
    if not isinstance(text, str) or not text.strip():
        return []
    digest = hashlib.blake2b(normalize(text).encode(), digest_size=8).digest()
    return [int.from_bytes(digest, "little")]


def _hash_source(config: SourceConfig) -> Ragged | None:
    """Hashes of every row's questions; None where its rows ask nothing."""
    source: Source = open_source(config)
    if not len(source) or not ({"prompt", "messages"} & source[0].keys()):
        return None
    return encode(source, QuestionHashes(), default_cache())["hash"]


def _find_asked(hashes: np.ndarray, places: Sequence[Ragged]) -> Pairs:
    """Which of `hashes` [N] are a question of a row of the places, with the first such row."""
    pairs = find_shared(hashes, [np.asarray(each.values) for each in places])
    rows = [np.repeat(np.arange(len(each)), each.lengths) for each in places]
    others = [rows[place][n] for place, n in zip(pairs.places, pairs.others, strict=True)]
    return dataclasses.replace(pairs, others=np.asarray(others, np.int64))


class QuestionHashes:
    """An `Encoder`: `hash_questions` of each row."""

    types: Mapping[str, np.dtype] = {"hash": np.dtype(np.uint64)}
    key: Mapping[str, int] = {"training_question_hashes": 3}

    def __init__(self) -> None:
        self._hashes: list[list[int]] = []

    def add(self, example: Mapping[str, Any], where: str) -> int:
        """Takes one row."""
        self._hashes.append(hash_questions(example))
        return sum(len(str(value)) for value in example.values())

    def take(self) -> dict[str, Encoded]:
        """The hashes of what was added."""
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
        encode(open_texts(source, source.split, data.tokenizer), QuestionHashes(), cache)
        for source in sources
    ]
    names = [f"{source.name}:{source.split}" for source in sources]
    for task, rows in rows_by_task.items():
        # of a conversation the last is asked
        asked_hashes = [(hash_questions(record) or [0])[-1] for _, record in rows]
        pairs = _find_asked(
            np.asarray(asked_hashes, np.uint64), [table["hash"] for table in tables]
        )
        if len(pairs) <= max_share * len(rows):
            continue
        numbers = np.asarray([row for row, _ in rows])
        of_split = dataclasses.replace(pairs, rows=numbers[pairs.rows])
        raise ValueError(
            f"{task}: {len(pairs):,} of {len(rows):,} questions are trained on too: "
            f"{name_pairs(of_split, names)}. Ask others, or remove them from the training "
            f"data; checks.overlap allows a share of them, now {max_share:.2%}."
        )
