"""Where the seconds of a run go, as its host sees them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

Item = TypeVar("Item")


class Timing:
    """Seconds by what the host did; what has no name is not counted.

    The host runs one step ahead of the devices, so that `step` (waiting for one to end) fills what
    the other parts leave: their sum over the whole is how much the devices could at most be idle.
    """

    def __init__(self, share: float = 1.0) -> None:
        """`share`: of the seconds that are this run's, where several go on together."""
        self.seconds: dict[str, float] = {}
        self._share = share
        # what earlier processes spent on the same run
        self.earlier_seconds = 0.0
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0)
            self.seconds[part] += self._share * (time.perf_counter() - start)

    @property
    def total_seconds(self) -> float:
        """Seconds of the whole run until now, those before a restart included."""
        return self.earlier_seconds + self._share * (time.perf_counter() - self._start)

    def count_rest(self, part: str) -> None:
        """Counts as `part` what passed since the start under no other name."""
        elapsed = self._share * (time.perf_counter() - self._start)
        self.seconds[part] = elapsed - sum(self.seconds.values())

    def each(self, part: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items; the time until each is there counts as `part`."""
        iterator = iter(items)
        while True:
            with self(part):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item


def describe_seconds(seconds: Mapping[str, float]) -> str:
    """`61.2 s: step 97.1%, data 0.4%, ...`"""
    total = sum(seconds.values())
    parts = sorted(seconds.items(), key=lambda entry: -entry[1])
    shares = ", ".join(f"{part} {share / max(total, 1e-9):.1%}" for part, share in parts)
    return f"{total:.1f} s: {shares}"
