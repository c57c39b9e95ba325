"""A share of a study's trials: where one of several processes begins, so that they rarely meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from research.studies.trials import Trial


@dataclasses.dataclass(frozen=True)
class Share:
    """Part `number` of `count`: its own trials come first, then those of the parts after it."""

    number: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Share:
        """From `I/N`, I from 0 on.

        Raises:
          ValueError: it is no such text.
        """
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
            raise ValueError(f"--share {text}: write I/N, with I from 0 below N")
        return cls(int(number), int(count))

    def order(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials in the order in which this share takes them."""
        return sorted(trials, key=self._distance)

    def _distance(self, trial: Trial) -> int:
        return (int(trial.address, 16) - self.number) % self.count


WHOLE = Share()
