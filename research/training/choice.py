"""How a group of runs is trained quickest: one after the other, or as one mapped program.

Nobody knows before trying: a processor does one run's products at full speed already, while an
accelerator that one small run leaves idle does many at the price of one. So a few steps of each way
are timed, on the group's own data.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from research import sharding
from research.runtime import memory
from research.training.opening import OpenedRun
from research.training.program import StepDoesNotFitError
from research.training.session import Session
from research.training.together import KINDS, Kind, map_program

_STEPS = 3  # that are timed, after one that is not


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a group is trained.

    Attributes:
      kind: how its program is mapped; None: one run after the other.
      devices: that share the trials.
      rates: steps a second, of all trials together, by way; empty if it was not tried.
      reasons: why a way was not tried.
    """

    kind: Kind | None
    devices: tuple[jax.Device, ...]
    rates: tuple[tuple[str, float], ...] = ()
    reasons: tuple[str, ...] = ()

    def describe(self) -> str:
        """The choice in a line, with what it stands on."""
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in self.rates)
        text: str = self.kind or "one after the other"
        text += f" ({rates} steps/s of all trials)" if rates else ""
        return "; ".join([text, *self.reasons])


def probe(session: Session, runs: Sequence[OpenedRun]) -> Choice:
    """Tries all ways that fit the devices' memory, once for groups of one program and size."""
    key = (runs[0].program.signature, len(runs))
    return session.once("choice", key, lambda: _probe(session, runs))


def _probe(session: Session, runs: Sequence[OpenedRun]) -> Choice:
    devices = tuple(jax.local_devices())
    rates: dict[str, float] = {}
    reasons = []
    for name in ("alone", *KINDS):
        try:
            seconds = _time_alone(session, runs[0]) if name == "alone" else None
            if seconds is None:
                seconds = _time_mapped(session, runs, name, devices) / len(runs)
            rates[name] = 1 / seconds
        except (StepDoesNotFitError, ValueError) as error:
            reasons.append(f"{name}: {error}")
    best = max(rates, key=lambda name: rates[name]) if rates else "alone"
    kind = next((kind for kind in KINDS if kind == best), None)
    return Choice(kind, devices, tuple(rates.items()), tuple(reasons))


def _time_alone(session: Session, run: OpenedRun) -> float:
    """Seconds of a step of one run on all devices, as a run alone is trained."""
    one = run.program
    program = session.make_program(one.experiment, one.base)
    with sharding.mesh_context(program.mesh, one.experiment.sharding_rules):
        batch = run.data.batch(0, program.local_rows)
        step = session.compile(program, batch)
        own, frozen = session.make_state(program, None)
        rows, hyper = program.place(batch), program.place_hyper()
        return _time(lambda own: step(own, frozen, rows, hyper), own)


def _time_mapped(
    session: Session, runs: Sequence[OpenedRun], kind: Any, devices: Sequence[jax.Device]
) -> float:
    """Seconds of a step of all runs as one program; ValueError where it does not fit."""
    program, batch = runs[0].program, runs[0].data.batch(0)
    mapped = map_program(program, len(runs), kind, devices)
    step = session.compile_mapped(mapped, batch)
    free = memory.free_bytes()
    resident = session.resident_bytes(program)
    memory.StepMemory.of(step).check(None if free is None else free + resident)
    with sharding.mesh_context(program.mesh, program.experiment.sharding_rules):
        own, frozen = session.make_state(program, None)
        hyper = mapped.stack([run.program.place_hyper() for run in runs])
    rows, base = mapped.place([batch] * len(runs)), mapped.place_base(frozen)
    return _time(lambda own: step(own, base, rows, hyper), mapped.stack([own] * len(runs)))


def _time(step: Callable[[Any], Any], own: Any) -> float:
    """The quickest of a few steps, in seconds."""
    times = []
    for _ in range(1 + _STEPS):
        start = time.perf_counter()
        own, metrics = step(own)
        jax.block_until_ready((own, metrics))
        times.append(time.perf_counter() - start)
    return min(times[1:])
