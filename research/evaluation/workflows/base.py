"""An answer on its way through a workflow, and the protocol of the steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research.evaluation.scorers.base import Scorer
from research.generation.constraints import ConstraintConfig


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One answer to a question, as far as it has come."""

    # number of the question among those that are asked
    question: int
    # its number among the question's candidates
    sample: int
    # what the model said last, and the same without thoughts
    text: str = ""
    plain_text: str = ""
    # what it said before, and what it was told then, oldest first
    turns: tuple[tuple[str, str], ...] = ()
    # how often the model was asked for it
    attempts: int = 0
    # whether what it said last was stopped before its end
    is_cut: bool = False
    # why a constraint failed in what it said last; empty: none did
    failure: str = ""
    # whether it passes the last check
    passes: bool = True

    def reply(self, message: str) -> Candidate:
        """The same, told something after what it said."""
        return dataclasses.replace(self, turns=(*self.turns, (self.text, message)))


# Candidates -> the same, with what the model says next in each.
Ask = Callable[[Sequence[Candidate]], list[Candidate]]


class Step:
    """A step of a workflow; each is a frozen dataclass with a `kind: Literal[...]` of its own."""

    # Its name in the registry and in configs.
    kind: str

    @property
    def scorer_configs(self) -> Sequence[Scorer]:
        """The scorers that it looks at answers with."""
        return ()

    @property
    def candidate_count(self) -> int:
        """Candidates that it needs of each question."""
        return 1

    @property
    def limits(self) -> tuple[ConstraintConfig | None, int | None] | None:
        """What it asks for from here on: the constraint and the most tokens of an answer, None the
        task's; None: as the step before."""
        return None

    def run(
        self, candidates: Sequence[Candidate], ask: Ask, records: Mapping[int, Mapping[str, Any]]
    ) -> list[Candidate]:
        """Takes the candidates of some questions on.

        Args:
          candidates: of all of them, those of a question in the order of their samples.
          ask: has the model say something in each.
          records: number of a question -> its record.
        """
        raise NotImplementedError
