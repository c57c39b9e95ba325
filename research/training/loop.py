"""One run, from its config to its last step: resume, compile, train, evaluate, save."""

from __future__ import annotations

import collections
import dataclasses
import fcntl
import itertools
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.config import schema

if TYPE_CHECKING:
    from research.data.pipeline import Pipeline
    from research.experiment import Experiment
    from research.text.tokenizer import Tokenizer
    from research.training.program import Program

ALL = 1_000_000  # finished models are never removed: adapters may stand on them
SUMMARY = "summary.json"
_LOCKS: dict[Path, Any] = {}


def train(experiment: Experiment, workdir: str | Path, dry_run: bool = False) -> dict[str, Any]:
    """Runs an experiment to its end, or to a signal, and returns its summary.

    Raises:
      ValueError: the experiment does not fit its data, model, mesh or folder.
      FloatingPointError: too many steps in a row without a finite loss and gradient.
    """
    import jax

    from research import sharding, tree
    from research.checkpoints import runs, stacking
    from research.checkpoints.checkpointer import Checkpointer, library_versions
    from research.data import run_checks, token_cache
    from research.data.pipeline import Pipeline
    from research.evaluation.heldout import heldout_loss, make_score, open_heldout
    from research.runtime import distributed, storage
    from research.runtime.memory import Memory, free_bytes
    from research.training.metrics import (
        MetricsWriter,
        Progress,
        peak_flops_per_second,
        peak_memory_bytes,
        read_metrics,
    )
    from research.training.program import make_program
    from research.training.timing import Timing

    started, folder, timing = time.perf_counter(), storage.absolute(workdir), Timing()

    # --- program: everything abstract, so that what does not fit is said before compute ---
    base, words = runs.open_base_and_tokenizer(experiment)
    method = experiment.method.bind(words)
    experiment = dataclasses.replace(experiment, method=method)
    program = make_program(experiment, base)

    # --- data ---
    vocabulary, bank = program.shape.vocabulary, method.bank_names
    data = Pipeline(experiment.data, words, token_cache.default_cache(), vocabulary, bank)
    split = experiment.evaluate_split
    run_checks.check_run(data, experiment.checks, split, token_cache.default_cache())
    heldout = open_heldout(data, split, experiment.evaluate_tokens)
    reading = data.statistics(experiment.steps)
    tokens_to_read = data.tokens(experiment.steps)
    shares = data.mixture.describe(experiment.data.batch_size, experiment.steps)
    speaks = jax.process_index() == 0

    # --- where the run stands: resume > init from > scratch ---
    checkpoints = Checkpointer(
        folder / "checkpoints",
        keep_last=experiment.checkpoint.keep_last,
        keep_best=int(experiment.checkpoint.keep_best),
        best_metric="heldout_loss" if experiment.checkpoint.keep_best else None,
    )
    first_step, spent = checkpoints.latest_step() or 0, 0.0
    if first_step:
        saved = runs.open_run(folder, experiment.init_from)
        assert saved.experiment is not None  # imported models lie in no run's checkpoints
        check_same_run(experiment, saved.experiment, folder)
        check_same_data(saved.checkpoint.metadata(), data, words, folder)
        spent = saved.checkpoint.metadata()["seconds"]
        if first_step >= experiment.steps and (folder / SUMMARY).exists():
            print(f"{folder} is finished: {first_step} of {experiment.steps} steps")
            return json.loads((folder / SUMMARY).read_text())
    distributed.check_alike(
        config=json.dumps(schema.to_dict(experiment), sort_keys=True),
        data=json.dumps(data.fingerprints),
        tokenizer=words.fingerprint(),
        base=base.fingerprint if base else "none",
        **{f"the last checkpoint in {folder}": f"step {first_step}"},
        versions=json.dumps(library_versions()),
    )
    if speaks:
        storage.check_writable(folder)
        print(describe(program, reading, tokens_to_read, shares, first_step), flush=True)
    peak_flops = peak_flops_per_second()  # out here: it is measured without a mesh

    with sharding.mesh_context(program.mesh, experiment.sharding_rules):
        # --- executable, before any array: what cannot fit is said now ---
        with timing("compile"):
            train_step = program.compile(data.batch(first_step, program.local_rows))
        needed = Memory.of(train_step)
        fits = needed.check(free_bytes())
        if speaks:
            print(f"memory     {fits}", flush=True)
        if dry_run:
            return {}

        # --- state ---
        with timing("state"):
            if first_step:
                state = program.resumed_state(checkpoints.at(first_step))
            else:
                state = program.fresh_state()
            hyper = jax.block_until_ready(program.place_hyper())

        # --- loop ---
        if speaks:
            if not storage.is_remote(folder):  # there are no locks in a bucket
                lock_workdir(Path(folder))
            runs.write_json(folder / "config.json", schema.to_dict(experiment))
            words.save(folder / runs.TOKENIZER)
        sidecar_files = (base.sidecar_files if base else {}) | data.sidecar_files
        metadata = {
            "experiment": schema.to_dict(experiment),
            "model": schema.to_dict(program.shape),
            "base": program.origin,
            "data": data.fingerprints,
            "tokenizer": words.fingerprint(),
            "roles": words.roles,
            "imported": base.imported if base else None,
            "versions": library_versions(),
        }
        writer = MetricsWriter(folder, first_step + 1)  # lines are numbered by steps done
        progress = Progress(
            experiment.steps,
            first_step,
            flops_per_token=program.flops_per_token,
            peak_flops=peak_flops,
        )
        step, skipped, total_skipped = first_step, 0, 0
        max_skipped = min(experiment.max_skipped, experiment.steps)
        last: dict[str, float] = {}
        measured: dict[str, float] = {}
        measured_at = 0
        if first_step >= experiment.steps:  # only the end is missing: its numbers are written
            for row in read_metrics(folder / "metrics.jsonl"):
                if row.pop("step") == first_step and "heldout_loss" in row:
                    measured, measured_at = row, first_step
                elif "loss" in row:
                    last = row
        waiting: collections.deque[tuple[int, Any]] = collections.deque()
        ended: list[float] = []  # when each step was seen to be over

        def report(behind: int) -> None:
            """Fetches metrics of steps that are over; `behind` steps may still be running."""
            nonlocal skipped, total_skipped, last
            while len(waiting) > behind:
                done, metrics = waiting.popleft()
                with timing("step"):
                    last = {name: float(value) for name, value in metrics.items()}
                ended.append(time.perf_counter())
                skipped = skipped + 1 if last["skipped"] else 0
                total_skipped += int(last["skipped"])
                progress.update(done, last["loss"], int(tokens_to_read / experiment.steps))
                if _due(done, experiment.log_every, experiment.steps) or skipped:
                    with timing("logging"):
                        writer.write(done, last)
                if skipped >= max_skipped:
                    raise FloatingPointError(
                        f"{skipped} steps in a row up to step {done} had no finite loss and "
                        "gradient, or no trained token: lower schedule.learning_rate, or look at "
                        "the data"
                    )

        def save(to: Checkpointer, names: list[str]) -> None:
            arrays = tree.flatten(state)
            writer.mirror()  # lines up to a checkpoint are not written again
            to.save(
                step,
                stacking.unstack_for_saving({name: arrays[name] for name in names}),
                metadata | {"seconds": spent + time.perf_counter() - started},
                metrics=measured if measured_at == step else None,  # an older model's say nothing
                files={**sidecar_files, runs.TOKENIZER: words.to_json().encode()},
            )

        with distributed.stop_signals() as stopped, writer, progress, checkpoints:
            timing.seconds["start"] = time.perf_counter() - started - sum(timing.seconds.values())
            batches = itertools.islice(
                data.batches(first_step, program.local_rows),
                max(0, experiment.steps - first_step),
            )
            for batch in timing.each("data", batches):
                with timing("dispatch"):
                    state, metrics = train_step(state, program.place(batch), hyper)
                step += 1
                waiting.append((step, metrics))
                report(behind=1)
                if heldout and _due(step, experiment.evaluate_every, experiment.steps):
                    report(behind=0)
                    with progress.pause(), timing("evaluation"):
                        measured = heldout_loss(
                            make_score(state.model, program.batch_sharding), heldout
                        )
                    measured_at = step
                    writer.write(step, measured)
                stop = stopped.at(step)  # asked once: a signal may come between the two uses
                if stop or _due(step, experiment.checkpoint.every, experiment.steps):
                    report(behind=0)
                    with timing("checkpoint"):
                        save(checkpoints, program.saved_names)
                if stop:
                    break
            report(behind=0)
            if step >= experiment.steps:  # what others use: the weights without the optimizer
                with timing("export"), Checkpointer(folder / "model", keep_last=ALL) as shelf:
                    save(shelf, [name for name in program.saved_names if name.startswith("model/")])

    lasted = [after - before for before, after in itertools.pairwise(ended)]
    # the whole run's numbers after the last step's, whose `tokens` are one batch's
    summary = {
        **last,
        **measured,
        "steps": step,
        "skipped": total_skipped,
        "finished": step >= experiment.steps,
        "seconds": spent + time.perf_counter() - started,
        "tokens": data.tokens(step),
        "examples": sum(source["epochs"] * source["documents"] for source in reading.values())
        * (step / experiment.steps),
        "documents": sum(source["documents"] for source in reading.values()),
        "truncated": sum(source["truncated"] for source in reading.values()),
        "flops": program.flops_per_token * data.tokens(step),
        "trainable_parameters": program.trainable_parameters,
        "parameters": program.parameters,
        "program_bytes": needed.peak,
        "peak_memory_bytes": peak_memory_bytes(),
        # of this process: the middle one, and the quickest, which a shared machine blurs least
        "step_seconds": statistics.median(lasted) if lasted else None,
        "quickest_step_seconds": min(lasted, default=None),
        "timing": timing.seconds,  # of this process; `seconds` counts those before a restart too
    }
    if speaks:
        print(f"time       {timing.describe()}")
        runs.write_json(folder / SUMMARY, summary)
        if not summary["finished"]:
            print(f"stopped by a signal at step {step}, saved; run the same command to go on")
    return summary


def describe(
    program: Program,
    reading: Mapping[str, Any],
    tokens_to_read: float,
    shares: Sequence[str],
    first_step: int,
) -> str:
    """The plan of a run: model, start, what it will read, what that costs, and where."""
    steps, shape = program.experiment.steps, program.mesh.shape
    trains, total = program.trainable_parameters, program.parameters
    start = f"step {first_step}" if first_step else program.experiment.init_from
    sources = "\n           ".join(
        f"{name}: {source['format']}, {source['documents']:,} documents, "
        + (f"{source['bad_lines']:,} bad lines left out, " if source["bad_lines"] else "")
        + f"{source['tokens']:,} tokens, reads {source['read']:,.0f} "
        f"({source['epochs']:.2g} epochs), {source['fill']:.1%} full, "
        f"{source['trained']:.1%} trained on, {source['truncated']:,} cut"
        for name, source in reading.items()
    )
    if len(shares) > 1 or len(reading) > 1:
        sources += "\n           mixture " + "\n           mixture ".join(shares)
    flops, stacks = program.flops_per_token, program.stacks
    layers = ", ".join(stacks) if len(stacks) < 8 else f"{len(stacks)} of them"
    return (
        f"model      {total:,} parameters, {trains:,} train ({trains / total:.2%}), method "
        f"{program.experiment.method.kind}, stacks {layers}\n"
        f"start      {start or 'random weights'}\n"
        f"data       {sources}\n"
        f"cost       {flops:.3g} FLOPs a token, {flops * tokens_to_read:.3g} in "
        f"{steps} steps\n"
        f"mesh       {' x '.join(f'{axis} {size}' for axis, size in shape.items())}"
    )


def lock_workdir(workdir: Path) -> None:
    """Makes the folder and keeps every other process of this machine from training in it."""
    workdir.mkdir(parents=True, exist_ok=True)
    if workdir in _LOCKS:
        _LOCKS.pop(workdir).close()
    lock = (workdir / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another process is training in {workdir}") from None
    _LOCKS[workdir] = lock  # held until this process trains there again, or ends


def check_same_run(now: Experiment, then: Experiment, workdir: Any) -> None:
    """Refuses to resume a folder with an experiment that would not give the same run.

    The number of steps, the mesh, and what is only measured or kept may change. So may the place
    of the base: opening the run has compared its fingerprint.
    """
    free = {
        "steps",
        "init_from",
        "mesh",
        "sharding_rules",
        "offload",
        "checkpoint",
        "log_every",
        "max_skipped",
        "checks",
    }
    free |= {"evaluate_every", "evaluate_split", "evaluate_tokens"}
    changed = [
        field.name
        for field in dataclasses.fields(now)
        if field.name not in free and getattr(now, field.name) != getattr(then, field.name)
    ]
    if changed:
        raise ValueError(
            f"{workdir} holds a run of another experiment ({', '.join(changed)} differ); "
            "choose another --workdir, or put the config back"
        )


def check_same_data(
    metadata: Mapping[str, Any], data: Pipeline, words: Tokenizer, workdir: Any
) -> None:
    """Refuses to resume on text or a tokenizer whose content is not what it was."""
    changed = [name for name, mark in data.fingerprints.items() if metadata["data"][name] != mark]
    if metadata["tokenizer"] != words.fingerprint():
        changed.append("the tokenizer")
    if changed:
        raise ValueError(
            f"{workdir} was trained on other content of {', '.join(changed)}; put it back, or "
            "choose another --workdir"
        )


def _due(step: int, every: int, steps: int) -> bool:
    return step == steps or bool(every and step % every == 0)
