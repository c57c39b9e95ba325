"""Answers that are good or bad one by one, without a pair."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from research.batch import BAD, GOOD, MISMATCHED
from research.objectives.base import Examples, Piece, joined, name_rows
from research.objectives.preference import (
    SIDES,
    AnswersObjective,
    SideEncoder,
    check_single,
    first_target,
    read_answer,
    side_table,
    whole_piece,
    with_roles,
)
from research.text.token_table import Encoded, Encoder, TokenTable
from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class LabelledAnswers(AnswersObjective):
    """Answers with labels, for `kto`. An example has `chosen` (a good answer) or `rejected`.

    Before each answer stands a document that is not trained on: the same prompt with the answer of
    the row before, cut where the row ends. Its likelihood is the loss's point of reference.
    """

    kind: Literal["labelled_answers"] = "labelled_answers"

    example_kind: ClassVar[str] = "labelled answers"

    def encoder(self, tokenizer: Tokenizer, window: int) -> Encoder:
        return _LabelEncoder(self, self.writer.encoder(tokenizer, window // 2))

    def prepare(self, table: TokenTable, tokenizer: Tokenizer, window: int) -> Examples:
        """Labelled answers of `table`, each in half a row.

        Raises:
          ValueError: more answers than `over_long` do not fit (names the rows), there is one alone,
            all have one label, or a template writes an answer as several texts.
        """
        answers = self.writer.prepare(side_table(table, "answer"), tokenizer, window // 2)
        check_single(answers)
        is_good = table["label"].values == 1
        fits = answers.lengths > 0
        note = self.check_long(table.name, ~fits, window)
        rows = np.flatnonzero(fits)
        if len(rows) < 2:
            raise ValueError(f"{table.name}: one answer alone has none to other prompts beside it.")
        if len(set(is_good[rows].tolist())) < 2:
            label = "good" if is_good[rows[0]] else "bad"
            raise ValueError(
                f"{table.name}: all {len(rows):,} answers are {label} ({name_rows(rows)}): there "
                "is nothing to tell apart."
            )
        # of each row that fits: the one before it
        before = np.zeros(len(fits), np.int64)
        before[rows] = np.roll(rows, 1)
        firsts = np.zeros(len(fits), np.int64)
        firsts[rows] = [first_target(whole_piece(answers, row)) for row in rows.tolist()]
        own_sizes, answer_sizes = answers.lengths, answers.lengths - firsts
        other_sizes = np.minimum(answer_sizes[before], window - own_sizes - firsts)

        def mismatched(index: int) -> Piece:
            own, other = (whole_piece(answers, i) for i in (index, int(before[index])))
            first, other_first = int(firsts[index]), int(firsts[before[index]])
            stop = other_first + int(other_sizes[index])
            answer_places = slice(other_first, stop)
            tokens = [own.tokens[: first + 1], other.targets[other_first : stop - 1]]
            roles = np.zeros(first + len(other.targets[answer_places]), np.int32)
            roles[first:] = np.where(other.weights[answer_places] > 0, MISMATCHED, 0)
            return Piece(
                np.concatenate(tokens),
                np.concatenate([own.targets[:first], other.targets[answer_places]]),
                np.zeros(len(roles), np.float32),
                documents=np.zeros(len(roles), np.int32),
                roles=roles,
            )

        def piece(index: int, start: int, stop: int) -> Piece:
            role = GOOD if is_good[index] else BAD
            pieces = (mismatched(index), with_roles(answers, index, 1, role))
            return joined(pieces).between(start, stop)

        count = int(is_good[rows].sum())
        labels = f"{count:,} good and {len(rows) - count:,} bad answers"
        return Examples(
            name=table.name,
            lengths=np.where(fits, own_sizes + firsts + other_sizes, 0),
            trained=answers.trained,
            bytes=None,
            truncated=answers.truncated,
            splittable=False,
            piece=piece,
            complete=True,
            stops=answers.stops,
            note=", ".join(filter(None, (labels, answers.note, note))),
            sidecar_files=answers.sidecar_files,
        )


class _LabelEncoder(SideEncoder):
    """The tokens of answers, and their labels: 1 for a good one."""

    def __init__(self, objective: LabelledAnswers, encoder: Encoder):
        def read(example: Mapping[str, Any], _: str, where: str) -> Mapping[str, Any]:
            return read_answer(example, _side(example, where), objective.of, where)

        super().__init__({"answer": encoder}, read)
        self.types |= {"label": np.dtype(np.uint8)}
        self._labels: list[list[int]] = []

    def add(self, example: Mapping[str, Any], where: str) -> int:
        characters = super().add(example, where)
        self._labels.append([int(_side(example, where) == "chosen")])
        return characters

    def take(self) -> dict[str, Encoded]:
        labels, self._labels = self._labels, []
        return super().take() | {"label": Encoded(labels, [0] * len(labels))}


def _side(example: Mapping[str, Any], where: str) -> str:
    """Which side the only answer of an example is.

    Raises:
      ValueError: it has none, or both.
    """
    sides = [side for side in SIDES if side in example]
    if len(sides) == 2:
        raise ValueError(
            f'{where}: this is a pair: use data.objective.kind="preference", or write each answer '
            "as a row of its own, with a label."
        )
    return sides[0] if sides else "chosen"
