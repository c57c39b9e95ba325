"""One run, from its config to its last step: open, compile, state, loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

from research import sharding
from research.experiment import Experiment
from research.runtime import distributed, memory, storage
from research.runtime.accelerators import peak_flops_per_second
from research.runtime.distributed import StopRequest
from research.step import Metrics
from research.training.follower import Follower, RunFollower
from research.training.observers import show
from research.training.opening import open_training
from research.training.progress import StepSink
from research.training.session import Session
from research.training.summary import Summary
from research.training.timing import Timing
from research.training.workdir import guard_workdir
from research.tree import Arrays


def train(
    experiment: Experiment,
    workdir: str | Path,
    dry_run: bool = False,
    on_step: StepSink | None = None,
    session: Session | None = None,
) -> Summary | None:
    """Runs an experiment to its end, or to a signal, and returns its summary; a dry run has none.

    Args:
      on_step: is told of every step; what it raises ends the run.
      session: what it shares with other runs of this process.

    Raises:
      ValueError: the experiment does not fit its data, model, mesh or folder.
      FloatingPointError: too many steps in a row without a finite loss and gradient.
      LockLostError: the folder, or its lock, was taken away from the run.
    """
    folder = storage.absolute(workdir)
    with guard_workdir(folder):
        return _train(experiment, folder, dry_run, Timing(), on_step, session or Session())


def _train(
    experiment: Experiment,
    folder: Path,
    dry_run: bool,
    timing: Timing,
    on_step: StepSink | None,
    session: Session,
) -> Summary | None:
    # --- program, data, and where the run stands: resume > init from > scratch ---
    run = open_training(experiment, folder, session, claim=not dry_run)
    program, data, checkpointer = run.program, run.data, run.checkpointer
    step, steps, timing.earlier_seconds = run.start.step, experiment.steps, run.start.seconds
    if run.start.summary:
        return run.start.summary
    peak_flops = peak_flops_per_second()  # out here: it is measured without a mesh

    with sharding.mesh_context(program.mesh, experiment.sharding_rules):
        # --- executable, before any array: what cannot fit is an error now ---
        with timing("compile"):
            train_step = session.compile(program, data.batch(step, program.local_rows))
        memory_plan = _check_memory(train_step, session.resident_bytes(program))
        if dry_run:
            return None

        # --- state ---
        with timing("state"):
            session.attach_model_fields(program, data, run.heldout)
            saved = checkpointer.at(step) if step else None
            own, frozen = session.make_state(program, saved, data)
            hyper = jax.block_until_ready(program.place_hyper())

        # --- loop ---
        with (
            distributed.catch_stop_signals() as stop_request,
            RunFollower(run, frozen, timing, on_step, peak_flops) as follower,
        ):
            batches = itertools.islice(data.batches(step, program.local_rows), max(0, steps - step))
            own, step = take_steps(
                lambda own, batch: train_step(own, frozen, program.place(batch), hyper),
                own,
                batches,
                step,
                follower,
                stop_request,
                timing,
            )
            return follower.end(step, own, memory_plan)


def take_steps(
    advance: Callable[[Arrays, Any], tuple[Arrays, Metrics]],
    own: Arrays,
    batches: Iterable[Any],
    step: int,
    follower: Follower,
    stop_request: StopRequest,
    timing: Timing,
) -> tuple[Arrays, int]:
    """The loop: the steps of a run, or of a group of runs as one program.

    Args:
      advance: takes a step, `(own, batch) -> (own, metrics)`, and gives `own` away.
      batches: one for each step that is left.
      step: how many are done.

    Returns:
      The arrays after the last step, and its number: that of the config, unless a signal came.
    """
    timing.count_rest("start")
    for batch in timing.each("data", batches):
        with timing("dispatch"):
            own, metrics = advance(own, batch)
        step += 1
        follower.push(step, metrics)
        stop = stop_request.should_stop(step)  # once: a signal may come at any time
        follower.after(step, own, stop)
        if stop or follower.has_ended:
            break
    return own, step


def _check_memory(compiled: Any, resident: int) -> memory.StepMemory:
    """What a compiled step needs of each device; raises ValueError where that is not free.

    Args:
      resident: bytes of it that are there already.
    """
    plan, free = memory.StepMemory.of(compiled), memory.free_bytes()
    line = plan.check(None if free is None else free + resident)
    if jax.process_index() == 0:
        show(f"memory     {line}")
    return plan
