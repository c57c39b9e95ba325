"""What a rung of the ladder is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from research.decisions.problem import Problem
from research.decisions.templates import PromptTemplate
from research.decisions.ways import Base, Way
from research.retrieval import RetrievalConfig


class LeftOut(Exception):  # noqa: N818 -- it is no error: the ladder says it and goes on
    """A rung that cannot be climbed here; its text says why."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the ladder stands."""

    problem: Problem
    bases: Sequence[Base]
    # that are tried, the task's own first
    templates: Sequence[PromptTemplate]
    # the best way to ask a model so far; None: none was asked
    best: Way | None
    # passages that may be read, such as a manual's; None: there are none
    passages: RetrievalConfig | None = None

    @property
    def incumbent(self) -> Way:
        if self.best is None:
            raise LeftOut("no model could be asked on the rungs before it")
        return self.best


@dataclasses.dataclass(frozen=True)
class Rung:
    """A kind of way."""

    name: str
    # The ways to try on it, cheapest first. Raises LeftOut: there are none here.
    ways: Callable[[Place], list[Way]]


def prefix_of(place: Place) -> str:
    """What the name of a way begins with that writes questions as the best one does."""
    best = place.incumbent
    return "" if best.template == place.templates[0] else f"{best.template.name}, "
