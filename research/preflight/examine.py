"""What a run will need, before there is a device to run it on.

`examine` compiles the real train step for the real TPU compiler, from shapes alone: whether it fits
is what that compiler says, not an estimate. How fast it can be at best is closed form
(`research.preflight.roofline`), and so is the money. `research.preflight.alternatives` looks for
the smallest changes that make it fit.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from research import sharding, tree
from research.checkpoints import runs
from research.experiment import Experiment
from research.preflight.roofline import roofline
from research.reports.page import Column, text_table
from research.runtime.accelerators import Topology
from research.runtime.memory import GIB, Memory
from research.text import tokenizer as tokenizers
from research.training.program import Program, UnevenBatch, make_program

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
Report = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Prices:
    """What chips cost; a file like configs/prices.json."""

    # when this was so
    date: str
    # for a chip and an hour, by version
    chip_hour: dict[str, float]
    currency: str = "dollars"
    # under which conditions, and from where
    what: str = ""


def examine(experiment: Experiment, topology: Topology, prices: Prices | None = None) -> Report:
    """Compiles the train step for a topology and says what it needs and what bounds it.

    Returns:
      Numbers by name, ready for JSON; GiB are those of one device. What is not known is None; a
      batch that the devices cannot share does not fit, and has no numbers of a place.

    Raises:
      ValueError: method, mesh or rules do not fit the model or each other.
      FileNotFoundError: the base is not there, and the config gives no `model` in its place.
    """
    try:
        program = abstract_program(experiment, topology.devices)
    except UnevenBatch as error:
        nowhere = abstract_program(experiment, mesh=sharding.MeshConfig().abstract(1))
        return _config_facts(nowhere, topology) | _unfitting(str(error))
    report = facts(program, topology, prices)
    start = time.perf_counter()
    with sharding.mesh_context(program.mesh, experiment.sharding_rules):
        try:
            memory = Memory.of(program.compile(program.batch_shapes))
        except ValueError as error:
            if "does not fit the devices' memory" not in str(error):
                raise
            held = sum(held_bytes(program).values()) + _batch_bytes(program)
            report |= _unfitting(str(error), held, _needed(str(error)))
        else:
            report |= {
                "fits": memory.peak <= topology.accelerator.memory,
                "argument_gib": memory.arguments / GIB,
                "temp_gib": memory.temporaries / GIB,
                "output_gib": memory.outputs / GIB,
                "peak_gib": memory.peak / GIB,
                "live_gib": memory.live / GIB if memory.live else None,
            }
    report["flags"] = os.environ.get("LIBTPU_INIT_ARGS", "").split()
    return report | {"compile_seconds": time.perf_counter() - start}


def refused(topology: str, slices: int, why: str) -> Report:
    """In place of a report, where there can be none."""
    return {"topology": topology, "slices": slices, "model_flops": None} | _unfitting(why)


def _unfitting(why: str, arguments: int | None = None, peak: int | None = None) -> Report:
    temporaries = None if arguments is None or peak is None else max(peak - arguments, 0)
    sizes = {"argument_gib": arguments, "temp_gib": temporaries, "peak_gib": peak}
    known = {name: None if size is None else size / GIB for name, size in sizes.items()}
    return {"fits": False, "why": why} | known


def abstract_program(
    experiment: Experiment,
    devices: Sequence[jax.Device] | None = None,
    mesh: sharding.AnyMesh | None = None,
) -> Program:
    """The program on devices that need not exist, of a base that need not either."""
    base = words = None
    if experiment.init_from and (Path(experiment.init_from).exists() or experiment.model is None):
        base, words = runs.open_base_and_tokenizer(experiment)
    elif experiment.tokenizer and Path(experiment.tokenizer).is_file():
        words = tokenizers.load(Path(experiment.tokenizer))
    if words is not None:
        bound = experiment.method.bind(words)
        experiment = dataclasses.replace(experiment, method=bound)
    return make_program(experiment, base, devices, mesh)


def facts(program: Program, topology: Topology, prices: Prices | None = None) -> Report:
    """What is known of a program without compiling it."""
    experiment, accelerator = program.experiment, topology.accelerator
    bound = roofline(program, accelerator, topology.slices)
    seconds = experiment.steps * bound.seconds
    chip_hours = topology.chips * seconds / 3600
    version = topology.name.partition(":")[0]
    price = prices.chip_hour.get(version) if prices else None
    held = held_bytes(program)
    return _config_facts(program, topology) | {
        "mesh": dict(program.mesh.shape),
        "rows_per_device": program.rows_of_device,
        **{f"{name}_gib": size / GIB for name, size in held.items()},
        "host_gib": host_bytes(program) / GIB,
        "hardware_flops": bound.hardware_flops,
        "memory_bytes": bound.memory_bytes,
        "sent_bytes": dataclasses.asdict(bound.traffic),
        "seconds": bound.times,
        "bound_by": bound.bound_by,
        "step_seconds": bound.seconds,
        "tokens_per_second": bound.tokens_per_second,
        "utilisation": bound.utilisation,
        "hours": seconds / 3600,
        "chip_hours": chip_hours,
        "money": None if price is None else price * chip_hours,
        "currency": prices.currency if prices else None,
        "prices_of": prices.date if prices and price is not None else None,
        "prices_are": prices.what if prices and price is not None else None,
    }


def _config_facts(program: Program, topology: Topology) -> Report:
    """What does not depend on where the arrays lie."""
    experiment = program.experiment
    data = experiment.data
    return {
        "topology": topology.name,
        "slices": topology.slices,
        "chips": topology.chips,
        "devices_per_chip": topology.accelerator.devices_per_chip,
        "limit_gib": topology.accelerator.memory / GIB,
        "method": experiment.method.kind,
        "parameters": program.parameters,
        "trainable_parameters": program.trainable_parameters,
        "batch_size": data.batch_size,
        "sequence_length": data.sequence_length,
        "accumulation_steps": experiment.accumulation_steps,
        "remat": program.shape.remat,
        "steps": experiment.steps,
        "model_flops": program.flops_per_token * data.batch_size * data.sequence_length,
    }


def held_bytes(program: Program) -> dict[str, int]:
    """Bytes of one device between two steps: of the base, of what is attached, of the optimizer."""
    base = tree.flatten(program.base_shapes)
    held = dict.fromkeys(("weights", "adapters", "optimizer"), 0)
    for name, leaf in tree.flatten(program.state_shapes).items():
        size = _own_bytes(program, name, leaf)
        own = name.removeprefix("model/")
        if program.shardings[name].memory_kind == sharding.HOST:
            continue
        if not name.startswith("model/"):
            held["optimizer"] += size
        else:
            held["weights" if own in base else "adapters"] += size
    return held


def host_bytes(program: Program) -> int:
    """Bytes that the host keeps for one device: offloaded moments, and inputs of layers."""
    leaves = tree.flatten(program.state_shapes)
    there = [n for n, placed in program.shardings.items() if placed.memory_kind == sharding.HOST]
    total = sum(_own_bytes(program, name, leaves[name]) for name in there)
    if program.shape.remat == "offload":
        shape, data = program.shape, program.experiment.data
        tokens = program.rows_of_device * data.sequence_length // program.mesh.shape["sequence"]
        total += tokens * shape.width * shape.layers * jnp.dtype(shape.compute_dtype).itemsize
    return total


def _batch_bytes(program: Program) -> int:
    leaves = jax.tree.leaves(program.batch_shapes)
    return sum(
        math.prod(program.batch_sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in leaves
    )


def _own_bytes(program: Program, name: str, leaf: Any) -> int:
    return math.prod(program.shardings[name].shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _needed(error: str) -> int | None:
    """Bytes that the compiler says it would need, from its message."""
    used = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of", error)
    used = used or re.search(r"total memory required[^(]*\(([\d.]+)([KMGT])\)", error)
    return int(float(used[1]) * UNITS[used[2]]) if used else None


def describe(report: Mapping[str, Any]) -> str:
    """A report as a person reads it."""
    slices = f"{report['slices']} x " if report["slices"] > 1 else ""
    chips = f"{report['chips']} chip{'s' if report['chips'] > 1 else ''}"
    trains = report["trainable_parameters"] / report["parameters"]
    lines = [
        f"{'fits' if report['fits'] else 'NO':10} {slices}{report['topology']}, {chips}: "
        f"{_verdict(report)}",
        f"{'run':10} {report['method']}, {report['parameters'] / 1e9:.2f} billion parameters, "
        f"{trains:.2%} train; {report['batch_size']} rows of {report['sequence_length']}, "
        f"accumulation_steps {report['accumulation_steps']}, remat {report['remat']}",
    ]
    if "mesh" not in report:
        return "\n".join([*lines, f"{'FLOPs':10} {report['model_flops']:.3g} a step"])
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1)
    held = ", ".join(
        f"{name} {report[name + '_gib']:.2f}"
        for name in ("weights", "adapters", "optimizer")
        if report[name + "_gib"] >= 0.005
    )
    memory = f"between steps: {held}"
    if report["host_gib"] >= 0.005:
        memory += f"; with the host {report['host_gib']:.2f}"
    for key, name in {"argument_gib": "; arguments", "temp_gib": ", temporaries"}.items():
        memory += f"{name} {report[key]:.2f}" if report.get(key) is not None else ""
    seconds, sent = report["seconds"], report["sent_bytes"]
    bounds = ", ".join(f"{name} {time_:.3g} s" for name, time_ in seconds.items() if time_)
    why = ", ".join(
        f"{name.replace('_', ' ')} {size / 1e9:.2f}" for name, size in sent.items() if size > 1e7
    )
    cost = f"at best {report['hours']:,.1f} hours, {report['chip_hours']:,.0f} chip-hours"
    lines.insert(1, f"{'memory':10} {memory} GiB")
    lines += [
        f"{'mesh':10} {mesh or 'one device'}; {report['rows_per_device']} rows a device at a time",
        f"{'FLOPs':10} {report['model_flops']:.3g} a step, with what is computed twice "
        f"{report['hardware_flops']:.3g}",
        f"{'bytes':10} {report['memory_bytes'] / 1e9:.1f} GB through memory; sent: "
        f"{why or 'nothing'} GB",
        f"{'at best':10} {report['step_seconds']:.3g} s a step, bound by {report['bound_by']} "
        f"({bounds})",
        f"{'':10} {report['tokens_per_second']:,.0f} tokens/s, {report['utilisation']:.1%} of peak",
        f"{'cost':10} {report['steps']:,} steps: {cost}",
    ]
    if report["money"] is not None:
        lines[-1] += f", {report['money']:,.0f} {report['currency']}"
        conditions = f", {report['prices_are']}" if report["prices_are"] else ""
        lines.append(f"{'':10} prices of {report['prices_of']}{conditions}")
    return "\n".join(lines)


def _verdict(report: Mapping[str, Any]) -> str:
    """By how much it fits or does not; else why not."""
    peak = report["peak_gib"]
    if peak is None:
        return report["why"]
    limit = report["limit_gib"]
    unit = "a chip" if report["devices_per_chip"] == 1 else "a device (half a chip)"
    rest = f"{limit - peak:.2f} left" if peak <= limit else f"{peak - limit:.2f} too many"
    return f"{peak:.2f} GiB {unit} of {limit:.2f}, {rest}"


def table(reports: Sequence[Mapping[str, Any]]) -> str:
    """One line a report; those that do not fit say why."""
    currency = next((r["currency"] for r in reports if r.get("currency")), "")
    columns = [
        Column("topology", "topology"),
        Column("chips", "chips"),
        Column("method", "method"),
        Column("fits", "fits"),
        Column("peak_gib", "peak", "GiB", format=".2f"),
        Column("limit_gib", "of", "GiB", format=".2f"),
        Column("argument_gib", "arguments", "GiB", format=".2f"),
        Column("temp_gib", "temporaries", "GiB", format=".2f"),
        Column("tokens_per_second", "at best", "tokens/s", format=",.0f"),
        Column("utilisation", "of peak", "%", 100, ".1f"),
        Column("bound_by", "bound by"),
        Column("hours", "run", "hours", format=",.1f"),
        Column("money", "cost", currency, format=",.0f"),
    ]
    if not all(report["fits"] for report in reports):
        columns.append(Column("why", "why not"))
    rows = [
        dict.fromkeys((column.key for column in columns), None)
        | dict(report)
        | {"fits": "yes" if report["fits"] else "no"}
        | {"why": "" if report["fits"] else _verdict(report)}
        for report in reports
    ]
    return text_table(rows, columns)


def prepare_environment(flags: str = "") -> None:
    """Lets the TPU compiler work on a machine without TPUs; before JAX makes its first device.

    Args:
      flags: the compiler's, if none are set.
    """
    if flags:
        os.environ.setdefault("LIBTPU_INIT_ARGS", flags)
    # what was compiled for devices that are not there cannot be read again without them
    jax.config.update("jax_enable_compilation_cache", False)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # what a TPU's machine would say, so that the compiler does not ask for it in many lines
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
