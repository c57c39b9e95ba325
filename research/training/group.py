"""Several runs trained as one mapped program, each in its own folder and with its own record.

A member of a group is a run like any other: its metrics, checkpoints, model and summary are those
that `loop.train` would write, so that whatever reads a run reads it, and a member that was stopped
goes on alone or in another group. What ends one member, such as a loss that is not finite, leaves
the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research import sharding
from research.batch import Batch
from research.experiment import Experiment
from research.runtime import distributed, memory
from research.training.choice import Choice
from research.training.follower import Follower, RunFollower
from research.training.loop import take_steps
from research.training.observers import show
from research.training.opening import OpenedRun, open_training
from research.training.progress import StepSink
from research.training.session import Session
from research.training.summary import Summary
from research.training.timing import Timing
from research.training.together import MappedProgram, map_program
from research.training.workdir import guard_workdir
from research.tree import Arrays

# chooses how a group is trained, from its opened runs
Choose = Callable[[Session, Sequence[OpenedRun]], Choice]


@dataclasses.dataclass
class Member:
    """A run of a group; `outcome` says what became of it.

    Attributes:
      output: a context that sends there what is printed of this run.
      outcome: its summary (not `finished` after a signal) or the error that ended it; None: it was
        not trained, as it does not fit the others or is quicker alone.
    """

    experiment: Experiment
    folder: Path
    output: Callable[[], contextlib.AbstractContextManager[Any]]
    on_step: StepSink | None = None
    outcome: Summary | Exception | None = None

    @contextlib.contextmanager
    def ending_alone(self) -> Iterator[None]:
        """Prints to the member's own output; an error there ends this member and no other."""
        try:
            with self.output():
                yield
        except Exception as error:  # whatever it is: it is the member's outcome
            self.outcome = error


def train_together(members: Sequence[Member], session: Session, choose: Choose) -> Choice | None:
    """Trains the members that fit each other as one program; their outcomes say the rest.

    Those that stand at the first one's step and have its program fit. Returns the choice of how
    they were trained; None: nothing was left to choose.
    """
    timing = Timing(share=1 / len(members))
    with contextlib.ExitStack() as stack:
        pairs = _open(members, session, stack)
        fitting = [pair for pair in pairs if _fits(pair[1], pairs[0][1])]
        if len(fitting) < 2:
            return None
        runs = [run for _, run in fitting]
        choice = choose(session, runs)
        if choice.kind is None:
            return choice
        mapped = map_program(runs[0].program, len(runs), choice.kind, choice.devices)
        with timing("compile"):
            train_step = session.compile_mapped(mapped, runs[0].data.batch(0))
        timing.earlier_seconds = float(np.mean([run.start.seconds for run in runs]))
        with timing("state"):
            states, frozen = _make_states(runs, session)
            own, base = mapped.stack(states), mapped.place_base(frozen)
            hyper = mapped.stack([run.program.place_hyper() for run in runs])
            del states
        stop_request = stack.enter_context(distributed.catch_stop_signals())
        lanes = []
        for number, (member, run) in enumerate(fitting):
            with member.ending_alone():
                show(f"together   {len(runs)} trials, {choice.describe()}")
                follower = RunFollower(run, frozen, timing, member.on_step)
                lanes.append(_Lane(number, member, stack.enter_context(follower)))
        group = _GroupFollower(lanes, mapped, timing)
        own, step = take_steps(
            lambda own, batches: train_step(own, base, mapped.place(batches), hyper),
            own,
            _batches(runs),
            runs[0].start.step,
            group,
            stop_request,
            timing,
        )
        group.end(step, own, memory.StepMemory.of(train_step))
    return choice


def _open(
    members: Sequence[Member], session: Session, stack: contextlib.ExitStack
) -> list[tuple[Member, OpenedRun]]:
    """The members that are not finished, on the first device."""
    pairs = []
    for member in members:
        with member.ending_alone():
            stack.enter_context(guard_workdir(member.folder))
            devices = jax.local_devices()[:1]
            run = open_training(member.experiment, member.folder, session, devices=devices)
            member.outcome = run.start.summary
            if member.outcome is None:
                pairs.append((member, run))
    return pairs


def _fits(run: OpenedRun, first: OpenedRun) -> bool:
    """Whether a run's steps can be taken with those of another one."""
    mine, others = run.program.experiment, first.program.experiment
    return (
        run.program.signature == first.program.signature
        and run.start.step == first.start.step
        and mine.steps == others.steps
        and mine.evaluate_every == others.evaluate_every
        and mine.checkpoint.every == others.checkpoint.every
    )


def _make_states(runs: Sequence[OpenedRun], session: Session) -> tuple[list[Arrays], Arrays]:
    """What each run has of its own where they stand, and the base's frozen arrays of all."""
    own: list[Arrays] = []
    for run in runs:
        program, step = run.program, run.start.step
        with sharding.mesh_context(program.mesh, program.experiment.sharding_rules):
            session.attach_model_fields(program, run.data, run.heldout)
            saved = run.checkpointer.at(step) if step else None
            mine, frozen = session.make_state(program, saved, run.data)
        own.append(mine)
    return own, frozen


def _batches(runs: Sequence[OpenedRun]) -> Iterator[list[Batch]]:
    """The batches of all runs at each step; runs that read the same data read it once."""
    program, step = runs[0].program, runs[0].start.step
    with contextlib.ExitStack() as stack:
        streams = {}
        for run in runs:
            if id(run.data) not in streams:
                streams[id(run.data)] = stream = run.data.batches(step, program.local_rows)
                stack.callback(stream.close)
        for _ in range(step, program.experiment.steps):
            fresh = {name: next(stream) for name, stream in streams.items()}
            yield [fresh[id(run.data)] for run in runs]


@dataclasses.dataclass(frozen=True)
class _Lane:
    """A member in training: its place along the mapped axis, and what follows its steps."""

    number: int
    member: Member
    follower: RunFollower


class _GroupFollower(Follower):
    """Tells every member that has not ended of its own part of a step."""

    def __init__(self, lanes: Sequence[_Lane], mapped: MappedProgram, timing: Timing):
        self._lanes, self._mapped, self._timing = lanes, mapped, timing
        self._in_flight: tuple[int, Mapping[str, Any]] | None = None

    @property
    def has_ended(self) -> bool:
        return not self._live()

    def push(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._deliver()
        self._in_flight = (step, metrics)

    def after(self, step: int, own: Arrays, is_last: bool) -> None:
        if is_last or any(lane.follower.acts_after(step) for lane in self._live()):
            self._deliver()
            for lane in self._live():
                with lane.member.ending_alone():
                    lane.follower.after(step, self._mapped.take(own, lane.number), is_last)

    def end(self, step: int, own: Arrays, plan: memory.StepMemory) -> None:
        """Ends the members that are left, as runs of their own."""
        self._deliver()
        for lane in self._live():
            with lane.member.ending_alone():
                mine = self._mapped.take(own, lane.number)
                lane.member.outcome = lane.follower.end(step, mine, plan)

    def _deliver(self) -> None:
        """Hands the metrics of the step before to the members, when it is over."""
        if self._in_flight is None:
            return
        (step, values), self._in_flight = self._in_flight, None
        with self._timing("step"):
            arrays = {name: np.asarray(value) for name, value in values.items()}
        for lane in self._live():
            with lane.member.ending_alone():
                mine = {name: array[lane.number] for name, array in arrays.items()}
                lane.follower.push(step, mine)

    def _live(self) -> list[_Lane]:
        return [lane for lane in self._lanes if lane.member.outcome is None]
