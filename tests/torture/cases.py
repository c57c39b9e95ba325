"""Cases of torture: what is done, what must hold, and how one is done again."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path


class PromiseError(Exception):
    """What must hold did not; the message says what was seen."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One fault: all of its choices come from its family, its number and the seed."""

    family: str
    number: int
    seed: int
    # the case's own folder, new and empty, which stays if the case fails
    folder: Path

    @property
    def random(self) -> random.Random:
        return random.Random(f"{self.seed} {self.family} {self.number}")


@dataclasses.dataclass(frozen=True)
class Family:
    """Faults of one kind."""

    name: str
    # the fault, and what must hold
    summary: str
    # does a case and returns how it held, in a few words; raises PromiseError
    run: Callable[[Case], str]
    # how often it is taken, beside the others: quick ones more often
    weight: int = 1


@dataclasses.dataclass
class Tally:
    """Cases of a family so far."""

    outcomes: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: list[str] = dataclasses.field(default_factory=list)

    @property
    def tried(self) -> int:
        return sum(self.outcomes.values()) + len(self.failures)


def one_line(errors: str) -> str:
    """The only line of a program's error output, but those of its progress and its warnings.

    Raises:
      PromiseError: there is a traceback, or another number of lines.
    """
    lines = [
        line
        for line in errors.splitlines()
        if line and not line.startswith(("step ", "WARNING", "W0", "I0", "E0"))
    ]
    if "Traceback" in errors or len(lines) != 1:
        raise PromiseError(f"not one line of error: {errors[-2000:]}")
    return lines[0]
