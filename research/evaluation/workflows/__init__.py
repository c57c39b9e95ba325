"""What a model does to answer a question in several steps: one file a kind, chosen in a config by
`kind`."""

from typing import Any

from research.config.schema import by_kind, one_of
from research.evaluation.workflows.base import Candidate, Step
from research.evaluation.workflows.check import Check
from research.evaluation.workflows.draft import Draft
from research.evaluation.workflows.vote import Vote

__all__ = ["STEPS", "AnyStep", "Candidate", "Step"]

STEPS: dict[str, type[Step]] = by_kind(Draft, Check, Vote)
# One of them, told apart by its `kind`.
AnyStep: Any = one_of(STEPS.values())
