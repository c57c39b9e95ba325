"""Questions of a test that stand in what a model was tuned on.

They are equal if their messages are, but for case, white space and compatible forms of characters
(NFKC), whatever was answered. Only examples are looked through, prompts and conversations: plain
text is the business of `graft prepare`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.checkpoints.runs import Run
from research.data.overlap import find_shared
from research.data.run_checks import name_pairs
from research.data.sources import Source, SourceConfig, open_source
from research.data.token_cache import default_cache, encode
from research.evaluation.questions import Question, question_of
from research.text.conversation import Conversation
from research.text.normalize import normalize
from research.text.token_table import Encoded


@dataclasses.dataclass(frozen=True)
class TrainingQuestions:
    """The questions of all examples that a run and its bases were tuned on."""

    # source -> [N] uint64 hash of the question of each row; 0 where it asks nothing
    hashes: Mapping[str, np.ndarray]
    # sources that cannot be read here, each with the reason
    unread: Sequence[str] = ()

    def find(self, questions: Sequence[Question]) -> tuple[np.ndarray, str]:
        """Which questions [N] are among them, and the first of these by their rows."""
        hashes = np.asarray([hash_question(each.conversation) for each in questions], np.uint64)
        pairs = find_shared(hashes, list(self.hashes.values()))
        is_trained = np.zeros(len(questions), bool)
        is_trained[pairs.rows] = True
        rows = np.asarray([each.row for each in questions], np.int64)
        named_by_row = dataclasses.replace(pairs, rows=rows[pairs.rows])
        return is_trained, name_pairs(named_by_row, list(self.hashes))


def read_training_questions(run: Run) -> TrainingQuestions:
    """The questions that a run was tuned on, and those of its bases; read once, then cached."""
    hashes: dict[str, np.ndarray] = {}
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
                hashes.setdefault(name, rows)
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


def _hash_source(config: SourceConfig) -> np.ndarray | None:
    """[N] the hash of every row's question; None where its rows ask nothing."""
    source: Source = open_source(config)
    if not len(source) or not ({"prompt", "messages"} & source[0].keys()):
        return None
    return np.asarray(encode(source, _QuestionHashes(), default_cache())["hash"].values)


class _QuestionHashes:
    """An `Encoder`: a hash of each row's question, 0 where it asks nothing."""

    def __init__(self) -> None:
        self._hashes: list[list[int]] = []
        self.types = {"hash": np.dtype(np.uint64)}
        self.key = {"training_question_hashes": 1}

    def add(self, example: Mapping[str, Any], where: str) -> int:
        """Takes one row."""
        try:
            question = question_of(example, 0, where)
        except ValueError:  # its last answer is no text: what it asks is not asked again
            self._hashes.append([0])
            return 1
        self._hashes.append([hash_question(question.conversation)])
        return 1 + len(question.text)

    def take(self) -> dict[str, Encoded]:
        """The hashes of what was added."""
        hashes, self._hashes = self._hashes, []
        return {"hash": Encoded(hashes, [0] * len(hashes))}
