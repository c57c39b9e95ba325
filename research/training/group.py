"""Several runs trained as one mapped program, each in its own folder and with its own record.

A member of a group is a run like any other: its metrics, checkpoints, model and summary are those
that `loop.train` would write, so that whatever reads a run reads it, and a member that was stopped
goes on alone or in another group. What ends one member, such as a loss that is not finite, leaves
the others.

The loop is not that of `loop.train`: there, one step is followed by what one run does about it;
here, by what every member does. Everything else (opening, monitor, saver, summary) is the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research import sharding
from research.batch import Batch
from research.experiment import Experiment
from research.runtime import distributed, memory
from research.training.choice import Choice
from research.training.heldout_loss import evaluate_heldout
from research.training.monitor import StepMonitor, is_due
from research.training.observers import show
from research.training.opening import OpenedRun, open_training
from research.training.progress import StepSink
from research.training.saving import RunSaver
from research.training.session import Session
from research.training.summary import Summary, summarize
from research.training.timing import Timing
from research.training.together import MappedProgram, map_program
from research.training.workdir import check_claim, guard_workdir, open_workdir, write_summary
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


class _Lane:
    """A member in training: what follows its steps."""

    def __init__(self, member: Member, run: OpenedRun, timing: Timing, stack: Any):
        self.member, self.run = member, run
        program, folder = run.program, run.folder
        open_workdir(folder, program.experiment, run.tokenizer)
        check = functools.partial(check_claim, folder)
        self.monitor = stack.enter_context(
            StepMonitor(
                program,
                run.tokens_per_step,
                folder,
                run.start.step,
                timing,
                None,
                member.on_step,
                check,
            )  # fmt: skip
        )
        checkpointer = stack.enter_context(run.checkpointer)
        self.saver = RunSaver(program, run.data, folder, checkpointer, self.monitor.writer, timing)

    def evaluate(self, step: int, own: Arrays, frozen: Arrays) -> None:
        program = self.run.program
        rules = program.experiment.sharding_rules
        with self.monitor.pause("evaluation"), sharding.mesh_context(program.mesh, rules):
            model = program.model(own, frozen)
            scores = evaluate_heldout(model, program.batch_sharding, self.run.heldout)
            self.monitor.push_evaluation(step, scores)


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
            step = session.compile_mapped(mapped, runs[0].data.batch(0))
        lanes: list[_Lane | None] = []
        for member, run in fitting:
            lanes.append(None)
            with member.ending_alone():
                show(f"together   {len(runs)} trials, {choice.describe()}")
                lanes[-1] = _Lane(member, run, timing, stack)
        timing.earlier_seconds = float(np.mean([run.start.seconds for run in runs]))
        _Group(mapped, lanes, runs, timing, memory.StepMemory.of(step)).train(session, step)
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


@dataclasses.dataclass
class _Group:
    """Lanes, one for each trial of a mapped program; None for a lane whose member has ended."""

    mapped: MappedProgram
    lanes: list[_Lane | None]
    runs: Sequence[OpenedRun]
    timing: Timing
    memory_plan: memory.StepMemory
    in_flight: tuple[int, Any] | None = None

    def train(self, session: Session, train_step: Any) -> None:
        """From where the runs stand to their last step, or to a signal."""
        mapped, timing, first = self.mapped, self.timing, self.runs[0]
        step, experiment = first.start.step, first.program.experiment
        with timing("state"):
            halves = []
            for run in self.runs:
                with sharding.mesh_context(run.program.mesh, experiment.sharding_rules):
                    saved = run.checkpointer.at(step) if step else None
                    halves.append(session.make_state(run.program, saved))
            frozen, own = halves[0][1], mapped.stack([own for own, _ in halves])
            del halves
            base = mapped.place_base(frozen)
            hyper = mapped.stack([run.program.place_hyper() for run in self.runs])
        timing.count_rest("start")
        with distributed.catch_stop_signals() as stop_request:
            for batches in timing.each("data", self._batches(step)):
                with timing("dispatch"):
                    own, metrics = train_step(own, base, mapped.place(batches), hyper)
                step += 1
                self._push(step, metrics)
                stop = stop_request.should_stop(step)
                is_saved = stop or is_due(step, experiment.checkpoint.every, experiment.steps)
                is_measured = is_due(step, experiment.evaluate_every, experiment.steps)
                if is_saved or is_measured:
                    self._push(step, None)
                for number, lane in self._live() if is_saved or is_measured else ():
                    with lane.member.ending_alone():
                        mine = mapped.take(own, number)
                        if is_measured and lane.run.heldout:
                            lane.evaluate(step, mine, frozen)
                        if is_saved:
                            lane.monitor.drain()
                            lane.saver.save(step, mine, lane.monitor.evaluation)
                if stop or not self._live():
                    break
            self._push(step, None)
            for number, lane in self._live():
                with lane.member.ending_alone():
                    self._end(lane, step, mapped.take(own, number))

    def _end(self, lane: _Lane, step: int, own: Arrays) -> None:
        run, monitor = lane.run, lane.monitor
        monitor.drain()
        if step >= run.program.experiment.steps:
            lane.saver.export(step, own, monitor.evaluation)
        summary = summarize(
            run.program, run.data, run.reading, monitor, self.memory_plan, self.timing, step
        )
        write_summary(run.folder, summary)
        lane.member.outcome = summary

    def _batches(self, step: int) -> Iterator[list[Batch]]:
        """The batches of all runs at each step; runs that read the same data read it once."""
        rows, steps = self.runs[0].program.local_rows, self.runs[0].program.experiment.steps
        with contextlib.ExitStack() as stack:
            streams = {}
            for run in self.runs:
                if id(run.data) not in streams:
                    streams[id(run.data)] = stream = run.data.batches(step, rows)
                    stack.callback(stream.close)
            for _ in range(step, steps):
                fresh = {name: next(stream) for name, stream in streams.items()}
                yield [fresh[id(run.data)] for run in self.runs]

    def _push(self, step: int, metrics: Any) -> None:
        """Hands the metrics of the step before to the members, when it is over."""
        if self.in_flight is not None:
            last_step, values = self.in_flight
            with self.timing("step"):
                arrays = {name: np.asarray(value) for name, value in values.items()}
            for number, lane in self._live():
                with lane.member.ending_alone():
                    lane.monitor.push(last_step, {name: x[number] for name, x in arrays.items()})
        self.in_flight = None if metrics is None else (step, metrics)

    def _live(self) -> list[tuple[int, _Lane]]:
        return [
            (number, lane)
            for number, lane in enumerate(self.lanes)
            if lane is not None and lane.member.outcome is None
        ]
