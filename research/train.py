"""Trains a model: from scratch, from a base, wholly, partly or through an adapter.

    python -m research.train --config configs/FILE.py[:ARG] --workdir DIR [--config.a.b=value ...]

One program for every phase: the config's `data` says what is learnt (`objective`), `method` what
is attached and trains, `init_from` where the weights start. Run it again with the same folder and
it resumes at the last checkpoint, to the same bits. Ctrl-C or SIGTERM saves and exits.

In the folder: config.json, tokenizer.json, metrics.jsonl, tensorboard/, checkpoints/, summary.json.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research import config as door

if TYPE_CHECKING:
    from research.experiment import Experiment


def main(argv: list[str] | None = None) -> None:
    parser = door.program_parser(__doc__)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan, train nothing"
    )
    arguments = door.parse(parser, argv)

    from research.compilation_cache import enable_compilation_cache
    from research.experiment import Experiment

    enable_compilation_cache()
    with _clear_errors():
        experiment = door.load(Experiment, arguments.config, arguments.overrides)
        train(experiment, arguments.workdir, dry_run=arguments.dry_run)


def train(experiment: Experiment, workdir: str | Path, dry_run: bool = False) -> dict[str, Any]:
    """Runs an experiment to its end, or to a signal, and returns its summary.

    Raises:
      ValueError: the experiment does not fit its data, model, mesh or folder.
      FloatingPointError: too many steps in a row without a finite loss and gradient.
    """
    import jax
    import numpy as np

    from research import cost, methods, runs, sharding, tree
    from research import step as stepping
    from research.checkpoint import Checkpointer, library_versions
    from research.data import tokenizer, tokens
    from research.data.pipeline import Pipeline
    from research.evaluation.heldout import heldout_loss, make_score, open_heldout
    from research.metrics import MetricsWriter, Progress, peak_flops_per_second, peak_memory_bytes
    from research.models.transformer import Transformer
    from research.schedules import Schedule

    started = time.perf_counter()
    workdir = Path(workdir)
    method = experiment.method

    # --- what is learnt from ---
    base = runs.open_run(experiment.init_from) if experiment.init_from else None
    words = tokenizer.load(experiment.tokenizer) if experiment.tokenizer else base.tokenizer
    shape = experiment.model or base.model
    data = Pipeline(experiment.data, words, tokens.default_cache(), shape.vocabulary)
    reading = data.statistics(experiment.steps)
    tokens_a_step = data.tokens_per_step

    # --- the model, abstract: names, shapes, what trains, where it lies ---
    stacks = methods.derive_stacks(shape, method)
    start = lambda key: Transformer(key, shape, stacks)  # noqa: E731
    start_key, attach_key, row_key = jax.random.split(jax.random.key(experiment.seed), 3)
    base_shapes = jax.eval_shape(start, start_key)
    model_shapes = jax.eval_shape(method.attach, base_shapes, attach_key)
    names = methods.trainable(model_shapes, method)
    plan = stepping.Plan(
        names,
        experiment.optimizer,
        experiment.schedule.kind,
        experiment.loss,
        experiment.accumulate,
    )
    hyper = stepping.Hyper(
        key=row_key,
        schedule=Schedule.make(experiment.schedule, experiment.steps),
        rates=stepping.multipliers(experiment.rate_rules, names, "rate_rules"),
        decays=stepping.multipliers(experiment.decay_rules, names, "decay_rules"),
        decay=np.float32(experiment.decay),
        clip=None if experiment.clip is None else np.float32(experiment.clip),
        dropout=np.float32(experiment.dropout) if experiment.dropout else None,
        site_dropout=np.float32(experiment.site_dropout) if experiment.site_dropout else None,
    )
    rules, mesh = experiment.sharding_rules, experiment.mesh.make()
    micro = experiment.data.batch_size // experiment.accumulate
    if micro % sharding.batch_parts(mesh, rules):
        raise ValueError(
            f"a micro-batch of {micro} rows does not divide over "
            f"{sharding.batch_parts(mesh, rules)} devices; change data.batch_size, accumulate "
            "or mesh"
        )
    state_shapes = jax.eval_shape(lambda model: stepping.init_state(model, plan), model_shapes)
    flat = tree.flatten(state_shapes)
    axes = tree.parameter_axes(model_shapes)
    parameters = sharding.shardings(axes, tree.flatten(model_shapes), mesh, rules)
    placed = sharding.state_shardings(flat, parameters, mesh)
    base_placed = {name: parameters[name] for name in tree.flatten(base_shapes)}
    rows = sharding.batch_sharding(mesh, rules)

    # what stays exactly the base's is not saved again: the base's fingerprint stands for it
    kept = {} if base is None else {n: s for n, s in base_placed.items() if n not in set(names)}
    owned = [name for name in flat if name.removeprefix("model/") not in kept]
    origin = {"path": str(base.saved.path), "fingerprint": base.fingerprint} if kept else None

    # --- state: resume > init from > scratch ---
    checkpoints = Checkpointer(
        workdir / "checkpoints",
        keep_last=experiment.checkpoint.keep_last,
        keep_best=int(experiment.checkpoint.keep_best),
        best_metric="heldout_loss" if experiment.checkpoint.keep_best else None,
    )
    first_step = checkpoints.latest_step() or 0
    if first_step >= experiment.steps and (workdir / "summary.json").exists():
        print(f"{workdir} is finished: {first_step} steps of {experiment.steps}")
        return json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
    flops = cost.flops_per_token(shape, model_shapes, names, experiment.data.sequence_length)
    trains, total = cost.count(model_shapes, names), cost.count(model_shapes)
    if jax.process_index() == 0:
        begins = f"step {first_step}" if first_step else experiment.init_from or "random weights"
        mesh_text = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        print(
            f"model      {total:,} parameters, {trains:,} train ({trains / total:.2%}), "
            f"method {method.kind}, stacks {', '.join(stacks)}\n"
            f"start      {begins}\n"
            f"data       {describe(reading)}\n"
            f"cost       {flops.train:.3g} FLOPs a token, "
            f"{flops.train * tokens_a_step * experiment.steps:.3g} in {experiment.steps} steps\n"
            f"mesh       {mesh_text} ({jax.devices()[0].device_kind})",
            flush=True,
        )

    with sharding.use(mesh, rules):
        spent = 0.0
        if first_step:
            saved = runs.open_run(workdir, experiment.init_from)
            check_same_run(experiment, saved.experiment, workdir)
            spent = saved.saved.metadata()["seconds"]
            mine = {name: flat[name] for name in owned}
            arrays = runs.restore_stacked(mine, placed, checkpoints.at(first_step).restore)
            if kept:
                theirs = {name: flat[f"model/{name}"] for name in kept}
                below = runs.restore_stacked(theirs, kept, base.parameters)
                arrays |= {f"model/{name}": array for name, array in below.items()}
            state = tree.unflatten(state_shapes, arrays)
        else:
            place = functools.partial(tree.unflatten, model_shapes)
            if base is None:
                begin = lambda keys: method.attach(start(keys[0]), keys[1])  # noqa: E731
                given: Any = (start_key, attach_key)
            else:
                held = runs.restore_stacked(
                    tree.flatten(base_shapes), base_placed, base.parameters
                )
                given = (tree.unflatten(base_shapes, held), attach_key)
                begin = lambda given: method.attach(*given)  # noqa: E731
            model = jax.jit(begin, out_shardings=place(parameters))(given)
            begin_state = functools.partial(stepping.init_state, plan=plan)
            state = jax.jit(
                begin_state, out_shardings=tree.unflatten(state_shapes, placed), donate_argnums=0
            )(model)

        # --- the program, compiled before the clock starts ---
        to_devices = functools.partial(
            jax.tree.map, lambda x: jax.make_array_from_process_local_data(rows, x)
        )
        example = to_devices(data.batch(first_step, jax.process_index(), jax.process_count()))
        train_step = (
            jax.jit(stepping.train_step, static_argnames="plan", donate_argnames="state")
            .lower(state, example, hyper, plan)
            .compile()
        )
        memory = train_step.memory_analysis()
        needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        print(f"memory     {needed / 2**30:.2f} GiB a device: ", end="")
        print(f"{memory.argument_size_in_bytes / 2**30:.2f} arguments, ", end="")
        print(f"{memory.temp_size_in_bytes / 2**30:.2f} temporaries", flush=True)
        if dry_run:
            return {}

        # --- the loop ---
        workdir.mkdir(parents=True, exist_ok=True)
        runs.write_json(workdir / "config.json", door.to_dict(experiment))
        words.save(workdir / runs.TOKENIZER)
        heldout = open_heldout(
            data, experiment.evaluate_split, experiment.evaluate_tokens
        )
        writer = MetricsWriter(workdir, first_step + 1)  # lines are numbered by steps done
        progress = Progress(
            experiment.steps,
            first_step,
            flops_per_token=flops.train,
            peak_flops=peak_flops_per_second(),
        )
        metadata = {
            "experiment": door.to_dict(experiment),
            "model": door.to_dict(shape),
            "base": origin,
    "data": data.fingerprints,
            "tokenizer": words.fingerprint(),
            "versions": library_versions(),
        }

        def save(to: Checkpointer, names: list[str]) -> None:
            arrays = tree.flatten(state)
            to.save(
                step,
                runs.unstack_for_saving({name: arrays[name] for name in names}),
                metadata | {"seconds": spent + time.perf_counter() - started},
                metrics=heldout_metrics or None,
                files={runs.TOKENIZER: workdir / runs.TOKENIZER},
            )

        skipped, last = 0, {}
        waiting: collections.deque[tuple[int, Any]] = collections.deque()

        def report(upto: int) -> None:
            """Fetches the metrics of steps that are over, one behind, so that none waits."""
            nonlocal skipped, last
            while len(waiting) > upto:
                step, metrics = waiting.popleft()
                last = {name: float(value) for name, value in metrics.items()}
                skipped = skipped + 1 if last["skipped"] else 0
                progress.update(step, last["loss"], int(tokens_a_step))
                if step % experiment.log_every == 0 or step == experiment.steps or skipped:
                    writer.write(step, last)
                if skipped >= experiment.most_skipped:
                    raise FloatingPointError(
                        f"{skipped} steps in a row up to step {step} had no finite loss and "
                        "gradient (or no trained token); lower schedule.rate, or look at the data"
                    )

        heldout_metrics: dict[str, float] = {}
        step = first_step
        with _stop_signals() as stopped, writer, progress, checkpoints:
            host = (jax.process_index(), jax.process_count())
            batches = itertools.islice(
                data.batches(first_step, *host), experiment.steps - first_step
            )
            for batch in batches:
                state, metrics = train_step(state, to_devices(batch), hyper)
                step += 1
                waiting.append((step, metrics))
                report(1)
                if _due(step, experiment.evaluate_every, experiment.steps) and heldout:
                    report(0)
                    with progress.pause():
                        heldout_metrics = heldout_loss(make_score(state.model, rows), heldout)
                    writer.write(step, heldout_metrics)
                if _due(step, experiment.checkpoint.every, experiment.steps) or stopped:
                    report(0)
                    save(checkpoints, owned)
                if stopped:
                    break
            report(0)
            if step == experiment.steps:  # what others use: without the optimizer's state
                with Checkpointer(workdir / "model", keep_last=1) as shelf:
                    save(shelf, [name for name in owned if name.startswith("model/")])

    summary = {
        "steps": step,
        "finished": step == experiment.steps,
        "seconds": spent + time.perf_counter() - started,
        "tokens": tokens_a_step * step,
        "examples": sum(source["epochs"] * source["documents"] for source in reading.values()),
        "documents": sum(source["documents"] for source in reading.values()),
        "truncated": sum(source["truncated"] for source in reading.values()),
        "flops": flops.train * tokens_a_step * step,
        "trainable_parameters": trains,
        "parameters": total,
        "program_bytes": needed,
        "peak_memory_bytes": peak_memory_bytes(),
        **last,
        **heldout_metrics,
    }
    if jax.process_index() == 0:
        runs.write_json(workdir / "summary.json", summary)
        if not summary["finished"]:
            print(f"stopped by a signal at step {step}, saved; run the same command to go on")
    return summary


def describe(reading: Mapping[str, Mapping[str, float]]) -> str:
    """A line for each source: how much of it the run will read."""
    return "\n           ".join(
        f"{name}: {source['documents']:,} documents, {source['tokens']:,} tokens, "
        f"{source['epochs']:.2g} epochs, {source['fill']:.1%} full, "
        f"{source['trained']:.1%} trained on, {source['truncated']:,} cut"
        for name, source in reading.items()
    )


def check_same_run(now: Experiment, then: Experiment, workdir: Path) -> None:
    """Refuses to resume a folder with an experiment that would not give the same run.

    The number of steps, the mesh, and what is only measured or kept may change.
    """
    free = {"steps", "mesh", "sharding_rules", "checkpoint", "log_every", "most_skipped"}
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


def _due(step: int, every: int, steps: int) -> bool:
    return step == steps or bool(every and step % every == 0)


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT instead of dying of them; a second one does what it always did."""
    received: list[int] = []
    before = {}

    def receive(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, before[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError):  # not the main thread: signals are not ours
            before[number] = signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """Wrong input ends with its message; only our own mistakes end with a traceback."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
