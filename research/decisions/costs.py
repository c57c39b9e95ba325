"""What a way costs: once, to build it, and with every request."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable

from research.evaluation.results import TaskResult


@dataclasses.dataclass(frozen=True)
class BuildCost:
    """What it takes before the first request."""

    # that are learnt from, or stand in prompts
    labels: int = 0
    # wall clock of training, of all runs that it took to find its settings
    seconds: float = 0.0
    flops: float = 0.0
    trainable_parameters: int = 0
    # what must be kept beside the base
    artifact_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class RequestCost:
    """What one request takes, on average."""

    # read and written
    tokens: float = 0.0
    # of answers, written
    new_tokens: float = 0.0
    # wall clock, of batches, compilation included
    seconds: float = 0.0
    # in closed form; 0: it is no model
    flops: float = 0.0
    # of weights, and of the keys and values of a batch
    memory_bytes: int = 0

    @classmethod
    def of(cls, result: TaskResult) -> RequestCost:
        """The mean of what a result's answers took."""
        count = len(result.answers)
        tokens = result.tokens_read or result.prompt_tokens + result.new_tokens
        return cls(
            tokens=tokens / count,
            new_tokens=result.new_tokens / count,
            seconds=result.seconds / count,
            flops=result.cost.flops / count,
            memory_bytes=result.cost.weight_bytes + result.cost.cache_bytes,
        )


@dataclasses.dataclass(frozen=True)
class Prices:
    """What time and labels cost."""

    # of an hour of the machine; 1 with the unit "machine-hours" where no price is stated
    hour: float = 1.0
    label: float = 0.0
    unit: str = "machine-hours"

    def build(self, cost: BuildCost) -> float:
        """Of building a way once."""
        return cost.seconds / 3600 * self.hour + cost.labels * self.label

    def requests(self, count: float, seconds: float) -> float:
        """Of so many requests of so many seconds each."""
        return count * seconds / 3600 * self.hour


def speed_of(costs: Iterable[RequestCost]) -> float | None:
    """FLOP/s of the machine: the median over ways that a model answers; None without one.

    A way is charged its FLOPs at this speed: its own seconds are of a few batches, with what
    compiling them took.
    """
    rates = [cost.flops / cost.seconds for cost in costs if cost.flops and cost.seconds]
    return statistics.median(rates) if rates else None


def seconds_at(cost: RequestCost, speed: float | None) -> float:
    """Seconds of a request at the machine's speed; of what is no model, as measured."""
    return cost.flops / speed if cost.flops and speed else cost.seconds
