"""The nearest configs that fit, where one does not: batch, rematerialisation, mesh."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from research.experiment import Experiment
from research.preflight.examine import Prices, abstract_program, examine, resident_bytes
from research.preflight.report import Alternative
from research.runtime.accelerators import Topology
from research.training.program import Program, UnevenBatchError


def nearest(
    load: Callable[[Sequence[str]], Experiment],
    topology: Topology,
    prices: Prices | None = None,
    tries: int = 6,
    max_fitting: int = 2,
) -> Iterator[Alternative]:
    """Configs like the one that does not fit, the least changes first, each compiled.

    Args:
      load: the config with such changes.

    Yields:
      Those that fit and those that do not; no more after `max_fitting` that fit, or `tries`.
    """
    limit, fitting = topology.accelerator.memory, 0
    for changes in proposals(load, topology):
        try:
            experiment = load(changes)
            resident = resident_bytes(abstract_program(experiment, topology.devices))
        except ValueError:
            continue  # a mesh that the model's heads or the batch do not divide by
        if sum(resident.values()) >= limit:
            continue  # known without compiling
        if not tries or fitting >= max_fitting:
            return
        tries -= 1
        report = examine(experiment, topology, prices)
        fitting += report.fits
        yield Alternative(changes, report)


def proposals(
    load: Callable[[Sequence[str]], Experiment], topology: Topology
) -> Iterator[list[str]]:
    """Changes, the least first; where the devices cannot share the rows, each makes that so."""

    def make_changed(changes: list[str]) -> Program:
        return abstract_program(load(changes), topology.devices)

    try:
        starts: list[tuple[list[str], Program]] = [([], make_changed([]))]
    except UnevenBatchError as error:
        starts = [([change], make_changed([change])) for change in _even(error, make_changed)]
        yield from (changes for changes, _ in starts)
    for changes, program in starts:
        for more in candidates(program, topology):
            yield [*changes, *more]


def _even(error: UnevenBatchError, make_changed: Callable[[list[str]], Program]) -> Iterator[str]:
    """Changes with which the devices can share the rows: other rows, or each on several devices."""
    yield from (f"data.batch_size={size}" for size in error.nearest)
    for axis in ("tensor", "sequence"):
        for size in (2, 4, 8):
            try:
                make_changed([change := f"mesh.{axis}={size}"])
            except ValueError:
                continue
            yield change
            break


def candidates(program: Program, topology: Topology) -> Iterator[list[str]]:
    """Changes, the least first: what costs a little time, then another mesh, then fewer rows."""
    experiment = program.experiment
    shape, devices = program.model_config, len(topology.devices)
    save: list[str] = []
    if not shape.recomputes_layers:
        save.append("compute.remat=full")
        yield list(save)
    loss = experiment.loss
    if shape.vocabulary >= 2**15 and not loss.vocabulary_chunks and not loss.reads_logits:
        chunks = next((n for n in (16, 12, 8, 10) if shape.vocabulary % n == 0), 0)
        if chunks and not program.model_shapes.head.site:
            save.append(f"loss.vocabulary_chunks={chunks}")
            yield list(save)
    mlps = [block.mlp for block in program.model_shapes.layers.values()]
    if (
        shape.mlp_width % 8 == 0
        and not shape.mlp_chunks
        and all(mlp.unsplittable_reason is None for mlp in mlps)
    ):
        save.append("compute.mlp_chunks=8")
        yield list(save)
    meshes: list[tuple[int, list[str]]] = [(program.mesh.shape["tensor"], [])]
    one = ["mesh.data=1", "mesh.fsdp=-1"]
    if program.mesh.shape["fsdp"] * program.mesh.shape["tensor"] < devices // topology.slices:
        meshes = [(program.mesh.shape["tensor"], one)]
        yield [*save, *one]
    for tensor in (2, 4, 8):
        if shape.kv_heads % tensor == 0 and tensor > program.mesh.shape["tensor"]:
            meshes.append((tensor, [*one, f"mesh.tensor={tensor}"]))
    first = meshes[0][1]
    rows, least = program.rows_of_device, experiment.accumulation_steps
    while rows > 1 and rows % 2 == 0:
        rows, least = rows // 2, least * 2
        yield [*save, *first, f"accumulation_steps={least}"]
    for tensor, mesh in meshes[1:]:
        yield [*save, *mesh]
        rows = experiment.data.batch_size * tensor // devices
        if rows > 1:
            yield [*save, *mesh, f"accumulation_steps={experiment.accumulation_steps * rows}"]
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
