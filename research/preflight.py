"""What a run will need, before there is a device to run it on.

`examine` compiles the real train step for the real TPU compiler, from shapes alone: whether it fits
is what that compiler says, not an estimate. How fast it can be at best is closed form
(`research.roofline`), and so is the money. `nearest` looks for the smallest changes that make it
fit.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from research import config as door
from research import methods, runs, sharding, tree
from research.accelerators import Topology
from research.data import tokenizer as tokenizers
from research.experiment import Experiment
from research.memory import GIB, Memory
from research.program import Program, make_program
from research.report import Column, text_table
from research.roofline import roofline

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
Report = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Prices:
    """What chips cost; a file like configs/prices.json."""

    # when this was so
    date: str
    # for a chip and an hour, by version
    chip_hour: dict[str, float]
    # currency and conditions
    what: str = "dollars"


def examine(experiment: Experiment, topology: Topology, prices: Prices | None = None) -> Report:
    """Compiles the train step for a topology and says what it needs and what bounds it.

    Returns:
      Numbers by name, ready for JSON; GiB are those of one device.

    Raises:
      ValueError: method, mesh, rules or batch do not fit the model or each other.
      FileNotFoundError: the base is not there, and the config gives no `model` in its place.
    """
    program = abstract_program(experiment, topology)
    limit = topology.accelerator.memory
    report = facts(program, topology, prices)
    start = time.perf_counter()
    with sharding.use(program.mesh, experiment.sharding_rules):
        try:
            memory = Memory.of(program.compile(program.batch_shapes))
        except ValueError as error:
            if "does not fit the devices' memory" not in str(error):
                raise
            needed = _needed(str(error))
            report |= {"fits": False, "peak_gib": needed and needed / GIB, "why": str(error)}
        else:
            report |= {
                "fits": memory.peak <= limit,
                "argument_gib": memory.arguments / GIB,
                "temp_gib": memory.temporaries / GIB,
                "output_gib": memory.outputs / GIB,
                "peak_gib": memory.peak / GIB,
                "live_gib": memory.live / GIB if memory.live else None,
            }
    return report | {"compile_seconds": time.perf_counter() - start}


def abstract_program(experiment: Experiment, topology: Topology) -> Program:
    """The program on devices that need not exist, of a base that need not either."""
    base = words = None
    if experiment.init_from and (Path(experiment.init_from).exists() or experiment.model is None):
        base, words = runs.open_start(experiment)
    elif experiment.tokenizer and Path(experiment.tokenizer).is_file():
        words = tokenizers.load(Path(experiment.tokenizer))
    if words is not None:
        bound = methods.bind(experiment.method, words)
        experiment = dataclasses.replace(experiment, method=bound)
    return make_program(experiment, base, topology.devices)


def facts(program: Program, topology: Topology, prices: Prices | None = None) -> Report:
    """What is known of a program without compiling it."""
    experiment, accelerator = program.experiment, topology.accelerator
    bound = roofline(program, accelerator, topology.slices)
    seconds = experiment.steps * bound.seconds
    chip_hours = topology.chips * seconds / 3600
    version = topology.name.partition(":")[0]
    price = prices.chip_hour.get(version) if prices else None
    held = held_bytes(program)
    return {
        "topology": topology.name,
        "slices": topology.slices,
        "chips": topology.chips,
        "devices_per_chip": accelerator.devices_per_chip,
        "mesh": dict(program.mesh.shape),
        "method": experiment.method.kind,
        "parameters": program.parameters,
        "trainable_parameters": program.trainable_parameters,
        "batch_size": experiment.data.batch_size,
        "sequence_length": experiment.data.sequence_length,
        "accumulate": experiment.accumulate,
        "remat": program.shape.remat,
        "rows_per_device": program.rows_of_device,
        "limit_gib": accelerator.memory / GIB,
        **{f"{name}_gib": size / GIB for name, size in held.items()},
        "host_gib": host_bytes(program) / GIB,
        "model_flops": bound.model_flops,
        "hardware_flops": bound.hardware_flops,
        "memory_bytes": bound.memory_bytes,
        "sent_bytes": dataclasses.asdict(bound.traffic),
        "seconds": bound.times,
        "bound_by": bound.bound_by,
        "step_seconds": bound.seconds,
        "tokens_per_second": bound.tokens_per_second,
        "utilisation": bound.utilisation,
        "steps": experiment.steps,
        "hours": seconds / 3600,
        "chip_hours": chip_hours,
        "money": None if price is None else price * chip_hours,
        "prices_of": prices.date if prices and price is not None else None,
    }


def held_bytes(program: Program) -> dict[str, int]:
    """Bytes of one device between two steps: of the base, of what is attached, of the optimizer."""
    base = tree.flatten(program.base_shapes)
    held = dict.fromkeys(("weights", "adapters", "optimizer"), 0)
    for name, leaf in tree.flatten(program.state_shapes).items():
        size = _own_bytes(program, name, leaf)
        own = name.removeprefix("model/")
        if program.placed[name].memory_kind == sharding.HOST:
            continue
        if not name.startswith("model/"):
            held["optimizer"] += size
        else:
            held["weights" if own in base else "adapters"] += size
    return held


def host_bytes(program: Program) -> int:
    """Bytes that the host keeps for one device: offloaded moments, and inputs of layers."""
    leaves = tree.flatten(program.state_shapes)
    there = [n for n, placed in program.placed.items() if placed.memory_kind == sharding.HOST]
    total = sum(_own_bytes(program, name, leaves[name]) for name in there)
    if program.shape.remat == "offload":
        shape, data = program.shape, program.experiment.data
        tokens = program.rows_of_device * data.sequence_length // program.mesh.shape["sequence"]
        total += tokens * shape.width * shape.layers * jnp.dtype(shape.compute_dtype).itemsize
    return total


def _own_bytes(program: Program, name: str, leaf: Any) -> int:
    return math.prod(program.placed[name].shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _needed(error: str) -> int | None:
    """Bytes that the compiler says it would need, from its message."""
    used = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of", error)
    used = used or re.search(r"total memory required[^(]*\(([\d.]+)([KMGT])\)", error)
    return int(float(used[1]) * UNITS[used[2]]) if used else None


# --- what would fit -----------------------------------------------------------------------------


def nearest(
    file: str,
    overrides: Sequence[str],
    topology: Topology,
    prices: Prices | None = None,
    tries: int = 6,
    wanted: int = 2,
) -> Iterator[tuple[list[str], Report]]:
    """Configs like the one that does not fit, with what was found; those that fit come too.

    Yields:
      Overrides on top of the given ones, and the report; after `wanted` that fit, or `tries`,
      no more.
    """
    limit, found = topology.accelerator.memory, 0
    given = abstract_program(door.load(Experiment, file, overrides), topology)
    for changes in candidates(given, topology):
        try:
            experiment = door.load(Experiment, file, [*overrides, *changes])
            held = held_bytes(abstract_program(experiment, topology))
        except ValueError:
            continue  # a mesh that the model's heads or the batch do not divide by
        if sum(held.values()) >= limit:
            continue  # known without compiling
        if not tries or found >= wanted:
            return
        tries -= 1
        report = examine(experiment, topology, prices)
        found += report["fits"]
        yield changes, report


def candidates(program: Program, topology: Topology) -> Iterator[list[str]]:
    """Changes, the least first: what costs a little time, then another mesh, then fewer rows."""
    experiment = program.experiment
    shape, devices = program.shape, len(topology.devices)
    save: list[str] = []
    if not shape.computes_again:
        save.append("compute.remat=full")
        yield list(save)
    if shape.vocabulary >= 2**15 and not experiment.loss.vocabulary_chunks:
        chunks = next((n for n in (16, 12, 8, 10) if shape.vocabulary % n == 0), 0)
        if chunks and not program.model_shapes.head.site:
            save.append(f"loss.vocabulary_chunks={chunks}")
            yield list(save)
    mlps = [block.mlp for block in program.model_shapes.layers.values()]
    if shape.hidden % 8 == 0 and not shape.mlp_chunks and all(mlp.whole is None for mlp in mlps):
        save.append("compute.mlp_chunks=8")
        yield list(save)
    meshes: list[tuple[int, list[str]]] = [(program.mesh.shape["tensor"], [])]
    one = ["mesh.data=1", "mesh.fsdp=-1"]
    if program.mesh.shape["fsdp"] * program.mesh.shape["tensor"] < devices // topology.slices:
        meshes = [(program.mesh.shape["tensor"], one)]
        yield [*save, *one]
    for tensor in (2, 4, 8):
        if shape.key_heads % tensor == 0 and tensor > program.mesh.shape["tensor"]:
            meshes.append((tensor, [*one, f"mesh.tensor={tensor}"]))
    first = meshes[0][1]
    rows, least = program.rows_of_device, experiment.accumulate
    while rows > 1 and rows % 2 == 0:
        rows, least = rows // 2, least * 2
        yield [*save, *first, f"accumulate={least}"]
    for tensor, mesh in meshes[1:]:
        yield [*save, *mesh]
        rows = experiment.data.batch_size * tensor // devices
        if rows > 1:
            yield [*save, *mesh, f"accumulate={experiment.accumulate * rows}"]
    fewer = experiment.data.batch_size // 2
    while fewer and fewer * program.mesh.shape["tensor"] >= devices:
        yield [*save, *first, f"data.batch_size={fewer}"]
        fewer //= 2
    for sequence in (2, 4, 8):
        if devices % sequence == 0 and experiment.data.sequence_length % (128 * sequence) == 0:
            fewer = max(1, devices // sequence)
            yield [
                *save,
                *one,
                f"mesh.sequence={sequence}",
                f"data.batch_size={fewer}",
            ]


# --- words --------------------------------------------------------------------------------------


def describe(report: Mapping[str, Any]) -> str:
    """A report as a person reads it."""
    unit = "a chip" if report["devices_per_chip"] == 1 else "a device (half a chip)"
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1)
    limit, peak = report["limit_gib"], report["peak_gib"]
    over = "" if peak is None else f": {peak:.2f} GiB {unit} of {limit:.2f}, "
    if peak is not None:
        over += f"{limit - peak:.2f} left" if report["fits"] else f"{peak - limit:.2f} too many"
    held = ", ".join(
        f"{name} {report[name + '_gib']:.2f}"
        for name in ("weights", "adapters", "optimizer")
        if report[name + "_gib"] >= 0.005
    )
    memory = f"between steps: {held}"
    if report["host_gib"] >= 0.005:
        memory += f"; with the host {report['host_gib']:.2f}"
    if "temp_gib" in report:
        memory += f"; arguments {report['argument_gib']:.2f}, temporaries {report['temp_gib']:.2f}"
    seconds, sent = report["seconds"], report["sent_bytes"]
    bounds = ", ".join(f"{name} {time_:.3g} s" for name, time_ in seconds.items() if time_)
    why = ", ".join(
        f"{name.replace('_', ' ')} {size / 1e9:.2f}" for name, size in sent.items() if size > 1e7
    )
    trains = report["trainable_parameters"] / report["parameters"]
    slices = f"{report['slices']} x " if report["slices"] > 1 else ""
    lines = [
        f"{'fits' if report['fits'] else 'NO':10} {slices}{report['topology']}, "
        f"{report['chips']} chip{'s' if report['chips'] > 1 else ''}{over}",
        f"{'memory':10} {memory} GiB",
        f"{'run':10} {report['method']}, {report['parameters'] / 1e9:.2f} billion parameters, "
        f"{trains:.2%} train; {report['batch_size']} rows of {report['sequence_length']}, "
        f"accumulate {report['accumulate']}, remat {report['remat']}",
        f"{'mesh':10} {mesh or 'one device'}; {report['rows_per_device']} rows a device at a time",
        f"{'FLOPs':10} {report['model_flops']:.3g} a step, with what is computed twice "
        f"{report['hardware_flops']:.3g}",
        f"{'bytes':10} {report['memory_bytes'] / 1e9:.1f} GB through memory; sent: "
        f"{why or 'nothing'} GB",
        f"{'at best':10} {report['step_seconds']:.3g} s a step, bound by {report['bound_by']} "
        f"({bounds})",
        f"{'':10} {report['tokens_per_second']:,.0f} tokens/s, {report['utilisation']:.1%} of peak",
        f"{'cost':10} {report['steps']:,} steps: at best {report['hours']:,.1f} hours, "
        f"{report['chip_hours']:,.0f} chip-hours"
        + (
            f", {report['money']:,.0f} dollars (prices of {report['prices_of']})"
            if report["money"] is not None
            else ""
        ),
    ]
    return "\n".join(lines)


def table(reports: Sequence[Mapping[str, Any]]) -> str:
    """One line a report."""
    rows = [{**report, "fits": "yes" if report["fits"] else "no"} for report in reports]
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
        Column("money", "cost", "dollars", format=",.0f"),
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
