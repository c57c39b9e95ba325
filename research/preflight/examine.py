"""Examines what a run will need, before there is a device to run it on.

`examine` compiles the real train step with the real TPU compiler, from shapes alone: whether it
fits is what that compiler says, not an estimate. How fast it can be at best is closed form
(`research.preflight.roofline`), and so is the money. `research.preflight.alternatives` looks for
the smallest changes that make it fit.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from research import sharding, tree
from research.checkpoints import runs
from research.experiment import Experiment
from research.preflight.report import Estimate, MemoryFit, Report, Workload
from research.preflight.roofline import roofline
from research.runtime.accelerators import Topology
from research.runtime.memory import GIB, StepMemory
from research.text import tokenizer as tokenizers
from research.training.program import (
    Program,
    StepDoesNotFitError,
    UnevenBatchError,
    make_program,
)

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Prices:
    """Prices of chips; a file like configs/prices.json."""

    # when this was so
    date: str
    # for a chip and an hour, by version
    chip_hour: dict[str, float]
    currency: str = "dollars"
    # under which conditions, and from where
    what: str = ""


def examine(experiment: Experiment, topology: Topology, prices: Prices | None = None) -> Report:
    """Compiles the train step for a topology, and reports what it needs and what bounds it.

    A batch that the devices cannot share does not fit, and has no estimate.

    Raises:
      ValueError: method, mesh or rules do not fit the model or each other.
      FileNotFoundError: the base is not there, and the config gives no `model` in its place.
    """
    try:
        program = abstract_program(experiment, topology.devices)
    except UnevenBatchError as error:
        on_one_device = abstract_program(experiment, mesh=sharding.MeshConfig().abstract(1))
        refusal = MemoryFit.refused(str(error))
        return Report(
            topology.name, topology.slices, refusal, describe_workload(on_one_device, topology)
        )
    workload = describe_workload(program, topology)
    estimate = estimate_step(program, topology, prices)
    start = time.perf_counter()
    return Report(
        topology.name,
        topology.slices,
        _compile_memory(program, topology),
        workload,
        estimate,
        flags=os.environ.get("LIBTPU_INIT_ARGS", "").split(),
        compile_seconds=time.perf_counter() - start,
    )


def plan(experiment: Experiment, topology: Topology, prices: Prices | None = None) -> Report:
    """The same without the compiler, in closed form.

    What lies in memory between two steps is known, what a step needs besides is not.

    Raises:
      ValueError, FileNotFoundError: as `examine`.
    """
    mesh = experiment.mesh.abstract(topology.device_count, topology.slices)
    try:
        program = abstract_program(experiment, mesh=mesh)
    except UnevenBatchError as error:
        return Report(topology.name, topology.slices, MemoryFit.refused(str(error)))
    resident = sum(resident_bytes(program).values())
    why = None
    if resident > topology.accelerator.memory:
        why = f"{resident / GIB:.2f} GiB lie in memory between steps alone"
    return Report(
        topology.name,
        topology.slices,
        MemoryFit(fits=why is None, why=why),
        describe_workload(program, topology),
        estimate_step(program, topology, prices),
    )


def _compile_memory(program: Program, topology: Topology) -> MemoryFit:
    """The memory of a program's step, by the TPU compiler."""
    with sharding.mesh_context(program.mesh, program.experiment.sharding_rules):
        try:
            memory = StepMemory.of(program.compile(program.batch_shapes))
        except StepDoesNotFitError as error:
            arguments = sum(resident_bytes(program).values()) + _batch_bytes(program)
            return MemoryFit.refused(str(error), arguments, _needed_bytes(str(error)))
    return MemoryFit(
        fits=memory.peak <= topology.accelerator.memory,
        argument_gib=memory.arguments / GIB,
        temp_gib=memory.temporaries / GIB,
        output_gib=memory.outputs / GIB,
        peak_gib=memory.peak / GIB,
        live_gib=memory.live / GIB if memory.live else None,
    )


def abstract_program(
    experiment: Experiment,
    devices: Sequence[jax.Device] | None = None,
    mesh: sharding.AnyMesh | None = None,
) -> Program:
    """The program on devices that need not exist, of a base that need not either."""
    base = tokenizer = None
    if experiment.init_from and (Path(experiment.init_from).exists() or experiment.model is None):
        base, tokenizer = runs.open_base_and_tokenizer(experiment)
    elif experiment.tokenizer and Path(experiment.tokenizer).is_file():
        tokenizer = tokenizers.load(Path(experiment.tokenizer))
    if tokenizer is not None:
        method = experiment.method.bind(tokenizer)
        experiment = dataclasses.replace(experiment, method=method)
    return make_program(experiment, base, devices, mesh)


def estimate_step(program: Program, topology: Topology, prices: Prices | None = None) -> Estimate:
    """The needs and limits of a program that is not compiled."""
    experiment, accelerator = program.experiment, topology.accelerator
    limits = roofline(program, accelerator, topology.slices)
    seconds = experiment.steps * limits.seconds
    chip_hours = topology.chips * seconds / 3600
    version = topology.name.partition(":")[0]
    price = prices.chip_hour.get(version) if prices else None
    resident = resident_bytes(program)
    return Estimate(
        mesh=dict(program.mesh.shape),
        rows_per_device=program.rows_of_device,
        weights_gib=resident["weights"] / GIB,
        adapters_gib=resident["adapters"] / GIB,
        optimizer_gib=resident["optimizer"] / GIB,
        host_gib=host_bytes(program) / GIB,
        hardware_flops=limits.hardware_flops,
        memory_bytes=limits.memory_bytes,
        sent_bytes=dataclasses.asdict(limits.traffic),
        seconds=limits.times,
        bound_by=limits.bound_by,
        step_seconds=limits.seconds,
        tokens_per_second=limits.tokens_per_second,
        utilisation=limits.utilisation,
        hours=seconds / 3600,
        chip_hours=chip_hours,
        money=None if price is None else price * chip_hours,
        currency=prices.currency if prices else None,
        prices_of=prices.date if prices and price is not None else None,
        prices_are=prices.what if prices and price is not None else None,
    )


def describe_workload(program: Program, topology: Topology) -> Workload:
    """The facts that do not depend on where the arrays lie."""
    experiment = program.experiment
    data = experiment.data
    return Workload(
        chips=topology.chips,
        devices_per_chip=topology.accelerator.devices_per_chip,
        limit_gib=topology.accelerator.memory / GIB,
        method=experiment.method.kind,
        parameters=program.parameters,
        trainable_parameters=program.trainable_parameters,
        batch_size=data.batch_size,
        sequence_length=data.sequence_length,
        accumulation_steps=experiment.accumulation_steps,
        remat=program.model_config.remat,
        steps=experiment.steps,
        model_flops=program.flops_per_token * data.batch_size * data.sequence_length,
    )


def resident_bytes(program: Program) -> dict[str, int]:
    """Bytes of one device between two steps: of the base, of what is attached, of the
    optimizer and what else a run keeps."""
    base_names = tree.flatten(program.base_shapes)
    sizes = dict.fromkeys(("weights", "adapters", "optimizer"), 0)
    for name, leaf in tree.flatten(program.state_shapes).items():
        if program.shardings[name].memory_kind == sharding.HOST:
            continue
        part = "optimizer"
        if name.startswith("model/"):
            part = "weights" if name.removeprefix("model/") in base_names else "adapters"
        sizes[part] += _local_bytes(program, name, leaf)
    return sizes


def host_bytes(program: Program) -> int:
    """Bytes that the host keeps for one device: offloaded moments, and inputs of layers."""
    leaves = tree.flatten(program.state_shapes)
    names = [n for n, place in program.shardings.items() if place.memory_kind == sharding.HOST]
    total = sum(_local_bytes(program, name, leaves[name]) for name in names)
    if program.model_config.remat == "offload":
        shape, data = program.model_config, program.experiment.data
        tokens = program.rows_of_device * data.sequence_length // program.mesh.shape["sequence"]
        total += tokens * shape.width * shape.layers * jnp.dtype(shape.compute_dtype).itemsize
    return total


def _batch_bytes(program: Program) -> int:
    leaves = jax.tree.leaves(program.batch_shapes)
    return sum(
        math.prod(program.batch_sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in leaves
    )


def _local_bytes(program: Program, name: str, leaf: Any) -> int:
    return math.prod(program.shardings[name].shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _needed_bytes(error: str) -> int | None:
    """Bytes that the compiler says it would need, from its message."""
    match = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of", error)
    match = match or re.search(r"total memory required[^(]*\(([\d.]+)([KMGT])\)", error)
    return int(float(match[1]) * UNITS[match[2]]) if match else None


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
