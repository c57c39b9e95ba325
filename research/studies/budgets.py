"""Budgets that every cell of a study meets: equal trainable parameters, or equal FLOPs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.config import paths
from research.experiment import Experiment
from research.studies.study import Equal
from research.text.tokenizer import Tokenizer
from research.training.program import Program, make_program

_LARGEST = 2**24


class Start(NamedTuple):
    """What a run starts from, opened once for all runs that do."""

    base: Run | None
    tokenizer: Tokenizer
    # of the tokenizer: what it is computed from is long
    tokenizer_fingerprint: str

    @classmethod
    def of(cls, experiment: Experiment) -> Start:
        """Opens the base and the tokenizer of an experiment."""
        base, tokenizer = runs.open_base_and_tokenizer(experiment)
        return cls(base, tokenizer, tokenizer.fingerprint())


def solve(equal: Equal, experiment: Experiment, start: Start, label: str) -> int:
    """The whole number of `equal.by` whose cost is nearest to the budget.

    The cost must grow with the number; it is counted from shapes, and nothing is computed.

    Raises:
      ValueError: no number is within the tolerance; names the nearest and what it costs.
    """
    key = paths.full_path(Experiment, equal.by)

    @functools.cache
    def cost_of(number: int) -> float:
        try:
            return cost(equal.of, paths.replace(experiment, {key: number}), start)
        except ValueError:
            if number == 1:
                raise
            return math.inf  # more than fits, such as a rank over a matrix's side

    number = nearest(cost_of, equal.amount)
    if abs(cost_of(number) - equal.amount) > equal.tolerance * equal.amount:
        raise ValueError(
            f"{label}: no {key} has {equal.amount:g} {equal.of} within {equal.tolerance:.0%}; the "
            f"nearest, {number}, has {cost_of(number):g}"
        )
    return number


def cost(of: str, experiment: Experiment, start: Start) -> float:
    """Trainable parameters of a run, or its model FLOPs, from shapes."""
    program = abstract_program(experiment, start)
    return float(program.trainable_parameters) if of == "parameters" else run_flops(program)


def abstract_program(experiment: Experiment, start: Start) -> Program:
    """The program of a run on this machine's devices; computes nothing.

    Its layers are stacked, however the run computes them: shapes are the same, and come sooner.
    """
    method = experiment.method.bind(start.tokenizer)
    compute = dataclasses.replace(experiment.compute, max_scan_layers=0)
    return make_program(dataclasses.replace(experiment, method=method, compute=compute), start.base)


def run_flops(program: Program) -> float:
    """Model FLOPs of a whole run whose rows are full."""
    return program.flops_per_token * tokens_of(program.experiment)


def tokens_of(experiment: Experiment) -> int:
    """Tokens of a run whose rows are full."""
    return experiment.steps * experiment.data.batch_size * experiment.data.sequence_length


def nearest(cost_of: Callable[[int], float], amount: float) -> int:
    """The number from 1 whose cost, which grows with it, is nearest to an amount."""
    high = 1
    while cost_of(high) < amount and high < _LARGEST:
        high *= 2
    low = max(1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost_of(middle) < amount else (low, middle)
    return min((low, high), key=lambda number: abs(cost_of(number) - amount))
