"""Lower bounds on the time of a step: its work over the devices' peak rates, in closed form.

Four times, each as if nothing else took any: the products at peak FLOP/s; what must pass between
memory and chip; what devices of a slice must tell each other; what slices must. A step cannot be
shorter than the longest. What is counted is what no program of this sharding can leave out, so the
bound is below any real step; a real one overlaps the four imperfectly (Williams et al. 2009).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from research import tree

if TYPE_CHECKING:
    from jax.sharding import NamedSharding

    from research.runtime.accelerators import Accelerator
    from research.training.program import Program

GRADIENT = 4  # bytes of a gradient's number


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that one device sends in a step, by why; between slices apart."""

    gathered_weights: float = 0.0  # over mesh.fsdp and mesh.sequence, before their use
    scattered_gradients: float = 0.0  # their sums, over the same
    replicas: float = 0.0  # gradients over mesh.data, inside a slice
    activations: float = 0.0  # over mesh.tensor, and of embeddings
    keys_and_values: float = 0.0  # over mesh.sequence
    between_slices: float = 0.0  # gradients over mesh.data

    @property
    def inside(self) -> float:
        """Bytes over the links of a slice."""
        every = dataclasses.asdict(self)
        return sum(every.values()) - self.between_slices


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step, each part alone, and what they come from."""

    model_flops: float  # of a whole step, on all devices
    hardware_flops: float  # with what is computed twice
    memory_bytes: float  # of one device
    traffic: Traffic
    compute: float
    memory: float
    links: float
    network: float
    tokens: float  # of a step
    peak: float  # FLOP/s of all devices

    @property
    def times(self) -> dict[str, float]:
        return {n: getattr(self, n) for n in ("compute", "memory", "links", "network")}

    @property
    def seconds(self) -> float:
        return max(self.times.values())

    @property
    def bound_by(self) -> str:
        return max(self.times, key=self.times.__getitem__)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def utilisation(self) -> float:
        """Model FLOPs at best over peak FLOPs (PaLM, arXiv:2204.02311, appendix B)."""
        return self.model_flops / (self.seconds * self.peak)


def roofline(
    program: Program, accelerator: Accelerator, slices: int = 1, trials: int = 1
) -> Roofline:
    """The limits of a program's step on devices of this kind.

    Args:
      trials: how many runs take the step together, on one device: their work adds up, and the
        frozen base is read once for all.

    Products of attention have heads' size as one side, and take as long as the arrays are wide.
    """
    data, shape = program.experiment.data, program.model_config
    tokens = trials * data.batch_size * data.sequence_length
    passes, flops = program.experiment.accumulation_steps, program.flops
    model_flops = trials * passes * flops.train(tokens / trials / passes)
    hardware = model_flops
    if shape.recomputes_layers:
        hardware += flops.recomputed * tokens
    elif shape.remat == "none":  # `products` keeps those of chunks too
        hardware += flops.recomputed_in_chunks * tokens
    if program.experiment.loss.vocabulary_chunks:
        hardware += 2 * shape.width * shape.vocabulary * tokens
    devices = program.mesh.size
    scores = flops.attention + shape.recomputes_layers * flops.attention_recomputed
    idle = max(accelerator.systolic_size / shape.head_dim - 1, 0) * scores * tokens
    sends = traffic(program, slices)
    moved_bytes = memory_bytes(program, trials)
    return Roofline(
        model_flops=model_flops,
        hardware_flops=hardware,
        memory_bytes=moved_bytes,
        traffic=sends,
        compute=(hardware + idle) / (devices * accelerator.flops),
        memory=moved_bytes / accelerator.memory_bandwidth,
        links=sends.inside / accelerator.link_bandwidth,
        network=sends.between_slices / accelerator.network_bandwidth,
        tokens=tokens,
        peak=devices * accelerator.flops,
    )


def traffic(program: Program, slices: int = 1) -> Traffic:
    """Bytes that one device must send in a step.

    Weights travel in the compute type (or as they are stored, if smaller), once forward and once
    backward for each micro-batch; gradients in float32, summed over micro-batches first where
    devices hold whole copies, and after each where they hold parts.
    """
    mesh, shape, experiment = program.mesh.shape, program.model_config, program.experiment
    wide = jnp.dtype(shape.compute_dtype).itemsize
    passes = experiment.accumulation_steps
    replicas = mesh["data"]
    trainable = set(program.step_config.trainable)
    gather_bytes = scatter_bytes = replica_bytes = 0.0
    for name, leaf, sharding in _parameters(program):
        shared = _ways(sharding, ("fsdp", "sequence"))
        numbers = _local_size(leaf, sharding)
        share = 1 - 1 / shared
        if _is_used_whole(name, program):
            uses = 2 + bool(experiment.loss.vocabulary_chunks and not name.startswith("layers/"))
            width = min(leaf.dtype.itemsize, wide)
            gather_bytes += passes * uses * share * shared * numbers * width
        if name in trainable:
            scatter_bytes += passes * share * shared * numbers * GRADIENT
            rest = mesh["fsdp"] * mesh["sequence"] // shared
            replica_bytes += 2 * numbers * GRADIENT
            # leaves that lie whole on devices with other tokens: small, so their sums are counted
            scatter_bytes += 2 * (1 - 1 / rest) * numbers * GRADIENT
    between = replica_bytes * (1 - 1 / slices)
    inside = replica_bytes * (1 - 1 / (replicas // slices))
    tokens = program.rows_of_device * experiment.data.sequence_length / mesh["sequence"]
    activation = tokens * shape.width * wide * passes
    over = 1 - 1 / mesh["tensor"]
    again = shape.recomputes_layers
    acts = 2 * over * activation * shape.layers * (2 + 2 + again)
    acts += 2 * activation * (1 - 1 / (mesh["fsdp"] * mesh["sequence"]))
    keys = 2 * tokens * mesh["sequence"] * shape.kv_heads * shape.head_dim * wide * passes
    keys *= (1 - 1 / mesh["sequence"]) * shape.layers * (2 + again) / mesh["tensor"]
    return Traffic(gather_bytes, scatter_bytes, inside, acts, keys, between)


def memory_bytes(program: Program, trials: int = 1) -> float:
    """Bytes between one device's memory and its chip: state read and written once, gathered weights
    written once and read for each product, and what each product gives.

    A frozen weight that is used as it is stored, by a device that has all of it, is only read.
    """
    mesh, shape, experiment = program.mesh.shape, program.model_config, program.experiment
    wide = jnp.dtype(shape.compute_dtype).itemsize
    trainable, total = set(program.step_config.trainable), 0.0
    for name, leaf in tree.flatten(program.state_shapes).items():
        size = _local_size(leaf, program.shardings[name]) * leaf.dtype.itemsize
        inside = name.removeprefix("model/")
        copies = 1 if inside in program.frozen_base else trials
        total += copies * size * (2 if not name.startswith("model/") or inside in trainable else 1)
    tokens = program.rows_of_device * experiment.data.sequence_length / mesh["sequence"]
    tokens *= trials * experiment.accumulation_steps
    again = shape.recomputes_layers
    for name, leaf, sharding in _parameters(program):
        if len(leaf.shape) - tree.is_stacked(name) != 2 or not _is_used_whole(name, program):
            continue
        whole = _local_size(leaf, sharding) * _ways(sharding, ("fsdp", "sequence"))
        uses, copies = 2 + again, 1 if name in program.frozen_base else trials
        is_ready = leaf.dtype.itemsize == wide and name not in trainable
        if is_ready and _ways(sharding, ("fsdp", "sequence")) == 1:
            # its first read was counted with the state
            total += copies * whole * wide * (experiment.accumulation_steps * uses - 1)
        else:
            total += copies * experiment.accumulation_steps * whole * wide * (uses + 1)
        # what it gives is written, and its gradient read; inputs are what others give
        inputs, outputs = (
            n / w for n, w in zip(leaf.shape[-2:], _cuts(sharding)[-2:], strict=True)
        )
        layers = leaf.shape[0] if tree.is_stacked(name) else 1
        if name == "embedding/kernel":  # as the head: turned
            outputs = inputs
        gives = min(inputs, outputs) if tree.is_attached(name) else outputs
        total += layers * tokens * gives * wide * uses
        if name in trainable:
            total += trials * whole * GRADIENT
    return total


def _is_used_whole(name: str, program: Program) -> bool:
    """Whether a device needs all of a weight that it shares: tokens travel to an embedding that is
    no head."""
    return name != "embedding/kernel" or program.model_config.tie_embeddings


def _parameters(program: Program) -> Iterator[tuple[str, Any, NamedSharding]]:
    for name, leaf in tree.flatten(program.model_shapes).items():
        yield name, leaf, program.shardings[f"model/{name}"]


def _local_size(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> int:
    """Numbers of a leaf that one device holds."""
    return math.prod(sharding.shard_shape(leaf.shape))


def _ways(sharding: NamedSharding, axes: tuple[str, ...]) -> int:
    """The number of parts of a leaf that is cut by these axes of the mesh."""
    return math.prod(_cuts(sharding, axes))


def _cuts(sharding: NamedSharding, axes: tuple[str, ...] | None = None) -> list[int]:
    """The number of parts of each axis of a leaf, cut by some axes of the mesh."""
    sizes: Mapping[str, int] = sharding.mesh.shape
    parts = [() if p is None else (p,) if isinstance(p, str) else p for p in sharding.spec]
    return [math.prod(sizes[a] for a in part if axes is None or a in axes) for part in parts]
