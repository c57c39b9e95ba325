"""A step in which the model says something."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from research.config.schema import Positive
from research.evaluation.workflows.base import Ask, Candidate, Step
from research.generation.constraints import AnyConstraint, ConstraintConfig


@dataclasses.dataclass(frozen=True)
class Draft(Step):
    """The model answers; after another draft it is told `instruction` first."""

    # what it is told after what it has said, such as "Now give the answer as JSON."
    instruction: str = ""
    # what it must be, here and where it is asked again; None: as the task says
    constraint: AnyConstraint | None = None
    # most tokens; None: as many as the task says
    max_tokens: Positive | None = None
    kind: Literal["draft"] = "draft"

    @property
    def limits(self) -> tuple[ConstraintConfig | None, int | None]:
        return self.constraint, self.max_tokens

    def run(
        self, candidates: Sequence[Candidate], ask: Ask, records: Mapping[int, Mapping[str, Any]]
    ) -> list[Candidate]:
        if self.instruction:
            candidates = [candidate.reply(self.instruction) for candidate in candidates]
        return ask(candidates)
