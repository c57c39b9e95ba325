"""What a constraint adds to a step of the decoder, beside answers without it in one process.

Two decoders take steps in turn, one of them under the constraint, and each is waited for, so that
what the host does there adds to the step. Where nobody waits, masks are made while the device
computes the step before. Only steps count in which every row had a request and none was filled.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from research import sharding
from research.benchmarks import harness
from research.checkpoints import runs
from research.generation.constraints import CompiledGrammar, Constraint
from research.generation.constraints.json_schema import read_schema
from research.generation.decoder import Decoder, Request
from research.runtime.compilation_cache import enable_compilation_cache


class _Timed:
    """A constraint that counts the host's seconds in it."""

    def __init__(self, constraint: Constraint, add: Callable[[float], object]):
        self._constraint, self._add = constraint, add

    def _time(self, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        try:
            return call()
        finally:
            self._add(time.perf_counter() - start)

    def mask(self) -> np.ndarray:
        return self._time(self._constraint.mask)

    def advance(self, token: int) -> None:
        self._time(lambda: self._constraint.advance(token))

    @property
    def is_finished(self) -> bool:
        return self._time(lambda: self._constraint.is_finished)

    @property
    def is_complete(self) -> bool:
        return self._constraint.is_complete


@dataclasses.dataclass
class _Steps:
    """Seconds of full steps: by the clock, of all processors, and of the host in constraints."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    processors: list[float] = dataclasses.field(default_factory=list)
    in_constraints: list[float] = dataclasses.field(default_factory=list)


def measure(arguments: argparse.Namespace) -> harness.Results:
    """Prints and returns the figures of each number of rows."""
    enable_compilation_cache()
    run = runs.open_run(arguments.run)
    constraint = read_schema(arguments.schema)
    grammar = constraint.compile(run.tokenizer, vocabulary_size=run.model.vocabulary)
    mesh, rules = sharding.MeshConfig().make(), sharding.RULES
    results: harness.Results = {"schema": str(arguments.schema), **harness.machine()}
    print(f"{arguments.run}, answers of {arguments.schema}: a step")
    with sharding.mesh_context(mesh, rules):
        model = runs.load_model(run, mesh, rules)
        for rows in arguments.rows:
            pairs = [
                _take_turns(
                    model,
                    _requests(arguments, run, rows, None),
                    _requests(arguments, run, rows, grammar),
                    rows,
                )
                for _ in range(arguments.rounds + 1)
            ][1:]  # the first one compiles
            results |= _show(rows, pairs)
    return results


def _show(rows: int, pairs: Sequence[tuple[_Steps, _Steps]]) -> harness.Results:
    if not all(steps.seconds for pair in pairs for steps in pair):
        raise ValueError(
            f"{rows} rows were never all answering in two steps on end: the answers are too short "
            "for it"
        )
    plain = [[statistics.median(each.seconds)] for each, _ in pairs]
    bound = [[statistics.median(each.seconds)] for _, each in pairs]
    host = [statistics.median(each.in_constraints) for _, each in pairs]
    host_share = [seconds / step for seconds, (step,) in zip(host, plain, strict=True)]
    more = [b / a - 1 for (a,), (b,) in zip(plain, bound, strict=True)]
    # on a machine that others use, the clock says little of a hundredth of a step
    more_processors = [
        statistics.median(b.processors) / statistics.median(a.processors) - 1 for a, b in pairs
    ]
    key = f"{rows}.constraint"
    figures = {
        f"{rows}.plain.seconds": harness.Spread.of([step for (step,) in plain]),
        f"{key}.seconds": harness.Spread.of([step for (step,) in bound]),
        f"{key}.host_seconds": harness.Spread.of(host),
        f"{key}.host_share": harness.Spread.of(host_share),
        f"{key}.more": harness.Spread.of(more),
        f"{key}.more_processors": harness.Spread.of(more_processors),
    }
    plain_seconds, seconds, host_seconds, share, longer, processors = figures.values()
    print(
        f"  {rows} rows: {plain_seconds.middle * 1e3:.1f} ms without a constraint, "
        f"{seconds.middle * 1e3:.1f} ms with it ({longer:+.1%}; time of all processors "
        f"{processors:+.1%});\n  the host's time in it {host_seconds.middle * 1e3:.2f} ms, "
        f"{share:.1%} of the step without",
        flush=True,
    )
    return {
        name: value
        for stem, spread in figures.items()
        for name, value in spread.to_results(stem).items()
    }


def _requests(
    arguments: argparse.Namespace, run: runs.Run, rows: int, grammar: CompiledGrammar | None
) -> list[tuple[Request, list[float]]]:
    """Prompts of random tokens of the tokenizer, and where each counts the host's seconds."""
    random, pairs = np.random.default_rng(0), []
    for number in range(2 * rows):
        prompt = random.choice(run.tokenizer.text_ids, arguments.prompt_tokens).tolist()
        seconds: list[float] = []
        constraint = None
        if grammar is not None:
            constraint = _Timed(grammar.start(arguments.new_tokens), seconds.append)
        request = Request(
            prompt=[*run.tokenizer.opening, *prompt],
            new_tokens=arguments.new_tokens,
            ends=frozenset({run.tokenizer.end_id}) if grammar is not None else frozenset(),
            number=number,
            constraint=constraint,
        )
        pairs.append((request, seconds))
    return pairs


def _take_turns(
    model: Any,
    plain_requests: Sequence[tuple[Request, list[float]]],
    bound_requests: Sequence[tuple[Request, list[float]]],
    rows: int,
) -> tuple[_Steps, _Steps]:
    """Answers requests without and with a constraint, a step of each in turn."""
    sides = [_Side(model, plain_requests, rows), _Side(model, bound_requests, rows)]
    while not any(side.decoder.is_idle for side in sides):
        for side in sides:
            side.step()
    return sides[0].steps, sides[1].steps


class _Side:
    """A decoder with its requests; times steps behind one in which all rows went on."""

    def __init__(self, model: Any, pairs: Sequence[tuple[Request, list[float]]], rows: int):
        self.decoder, self.steps = Decoder(model, rows), _Steps()
        self._rows, self._is_full = rows, False
        self._counters = [seconds for _, seconds in pairs]
        for request, _ in pairs:
            self.decoder.add(request)

    def step(self) -> None:
        for seconds in self._counters:
            seconds.clear()
        start, processors_start = time.perf_counter(), time.process_time()
        tokens = self.decoder.step()
        self.decoder.block_until_ready()
        if self._is_full:
            self.steps.seconds.append(time.perf_counter() - start)
            self.steps.processors.append(time.process_time() - processors_start)
            self.steps.in_constraints.append(sum(map(sum, self._counters)))
        self._is_full = len(tokens) == self._rows and all(t.ending is None for t in tokens)
