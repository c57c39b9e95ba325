"""Answers that a model gave, as the tokens that it drew, each with its advantage."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from research.objectives.base import Examples, Piece
from research.objectives.preference import AnswersObjective
from research.text.token_table import Encoded, Encoder, TokenTable, field_text
from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Rollouts(AnswersObjective):
    """Sampled answers, for losses of rewards (`grpo`, `reinforce`); see `research.phases.rollouts`.

    An example is a document of `prompt_ids` and `answer_ids`: nothing is tokenized again, so that
    what is trained on is what was drawn. `Batch.values` has its `advantage` at each of its tokens.
    `of` writes the prompts that such a model is asked with.
    """

    kind: Literal["rollouts"] = "rollouts"

    fields: ClassVar[Mapping[str, bool]] = {"prompt": False, "answer": False}
    example_kind: ClassVar[str] = "rollouts"

    @property
    def texts_key(self) -> Any:
        return [self.kind]

    def texts(self, example: Mapping[str, Any], where: str) -> list[str]:
        return [field_text(example, field, where) for field in self.fields]

    def encoder(self, tokenizer: Tokenizer, window: int) -> Encoder:
        return _RolloutEncoder()

    def prepare(self, table: TokenTable, tokenizer: Tokenizer, window: int) -> Examples:
        """Rollouts of `table`, each in a row.

        Raises:
          ValueError: more of them than `over_long` do not fit; names the rows.
        """
        prompts, answers = table["prompt_ids"], table["answer_ids"]
        advantages = table["advantage"].values
        lengths = prompts.lengths + answers.lengths - 1
        fits = lengths <= window
        note = self.check_long(table.name, ~fits, window)

        def piece(index: int, start: int, stop: int) -> Piece:
            ids = np.concatenate([prompts[index], answers[index]]).astype(np.int32)
            weights = np.ones(len(ids) - 1, np.float32)
            weights[: len(prompts[index]) - 1] = 0.0
            values = np.full(len(weights), advantages[index], np.float32)
            return Piece(ids[:-1], ids[1:], weights, values=values).between(start, stop)

        return Examples(
            name=table.name,
            lengths=np.where(fits, lengths, 0),
            trained=np.where(fits, answers.lengths, 0),
            bytes=None,
            truncated=np.zeros(len(fits), bool),
            splittable=False,
            piece=piece,
            ends=False,  # one that was cut has no end
            complete=True,
            are_sampled=True,
            note=note,
        )

    def check_long(self, name: str, is_long: np.ndarray, window: int) -> str:
        long = np.flatnonzero(is_long)
        if len(long) > self.over_long * len(is_long):
            raise ValueError(
                f"{name}: {len(long)} of {len(is_long)} rollouts have more than the {window} "
                "tokens of a row, prompt and answer: use a longer sequence_length, fewer "
                "max_tokens, or leave them out with data.objective.over_long"
            )
        return f"{len(long):,} over-long left out" if len(long) else ""


class _RolloutEncoder:
    """Takes tokens as they are."""

    types: ClassVar[Mapping[str, np.dtype]] = {
        "prompt_ids": np.dtype(np.int32),
        "answer_ids": np.dtype(np.int32),
        "advantage": np.dtype(np.float32),
    }
    key: ClassVar[Mapping[str, Any]] = {"rollouts": 1}

    def __init__(self) -> None:
        self._values: dict[str, list[Any]] = {name: [] for name in self.types}

    def add(self, example: Mapping[str, Any], where: str) -> int:
        for name in self.types:
            if name not in example:
                raise ValueError(
                    f'{where}: there is no field {name!r}: rollouts have format="rollouts"'
                )
        self._values["prompt_ids"].append(example["prompt_ids"])
        self._values["answer_ids"].append(example["answer_ids"])
        self._values["advantage"].append([example["advantage"]])
        return len(example["prompt_ids"]) + len(example["answer_ids"])

    def take(self) -> dict[str, Encoded]:
        result = {name: Encoded(values, [0] * len(values)) for name, values in self._values.items()}
        self._values = {name: [] for name in self.types}
        return result
