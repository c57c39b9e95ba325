"""One run, from its config to its last step: open, compile, state, loop."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import jax

from research import sharding
from research.experiment import Experiment
from research.runtime import distributed, memory, storage
from research.runtime.accelerators import peak_flops_per_second
from research.training import saving
from research.training.heldout_loss import evaluate_heldout
from research.training.monitor import StepMonitor, is_due
from research.training.observers import show
from research.training.opening import open_training
from research.training.progress import StepSink
from research.training.session import Session
from research.training.summary import Summary, summarize
from research.training.timing import Timing
from research.training.workdir import check_claim, guard_workdir, open_workdir, write_summary


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
            own, frozen = session.make_state(program, checkpointer.at(step) if step else None)
            hyper = jax.block_until_ready(program.place_hyper())

        # --- loop ---
        open_workdir(folder, program.experiment, run.tokenizer)
        check, tokens = functools.partial(check_claim, folder), run.tokens_per_step
        monitor = StepMonitor(program, tokens, folder, step, timing, peak_flops, on_step, check)
        saver = saving.RunSaver(program, data, folder, checkpointer, monitor.writer, timing)
        with distributed.catch_stop_signals() as stop_request, monitor, checkpointer:
            timing.count_rest("start")
            batches = itertools.islice(data.batches(step, program.local_rows), max(0, steps - step))
            for batch in timing.each("data", batches):
                with timing("dispatch"):
                    own, metrics = train_step(own, frozen, program.place(batch), hyper)
                step += 1
                monitor.push(step, metrics)
                if run.heldout and is_due(step, experiment.evaluate_every, steps):
                    with monitor.pause("evaluation"):
                        monitor.push_evaluation(
                            step,
                            evaluate_heldout(
                                program.model(own, frozen), program.batch_sharding, run.heldout
                            ),
                        )
                stop = stop_request.should_stop(step)  # once: a signal may come at any time
                if stop or is_due(step, experiment.checkpoint.every, steps):
                    monitor.drain()
                    saver.save(step, own, monitor.evaluation)
                if stop:
                    break
            monitor.drain()
            if step >= steps:
                saver.export(step, own, monitor.evaluation)

    summary = summarize(program, data, run.reading, monitor, memory_plan, timing, step)
    write_summary(folder, summary)
    return summary


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
