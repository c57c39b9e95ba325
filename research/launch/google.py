"""Google's names for its TPUs, and the machines of a slice.

Names of queued resources and of GKE's labels are those of docs.cloud.google.com, read in November
2026; TPU7x is offered through GKE alone.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import posixpath
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from research.launch import clone
from research.launch.job import Job, StudyJob

if TYPE_CHECKING:
    from research.experiment import Experiment

# chips of one machine of a slice that has several
CHIPS_OF_HOST = 4


@dataclasses.dataclass(frozen=True)
class Product:
    """One version of TPU."""

    # --accelerator-type without its number; empty where there are no TPU VMs of it
    type: str
    # what that number counts for each chip: 1, or the cores of older versions
    units_per_chip: int
    # --runtime-version
    runtime: str
    # cloud.google.com/gke-tpu-accelerator
    label: str
    # most chips of a single machine, which then is a slice of its own
    single: int = CHIPS_OF_HOST


PRODUCTS = {
    "v4": Product("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice"),
    "v5e": Product("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", single=8),
    "v5p": Product("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice"),
    "v6e": Product("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", single=8),
    "tpu7x": Product("", 1, "", "tpu7x"),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips of one slice."""

    product: Product
    shape: str
    chips: int

    @property
    def accelerator_type(self) -> str:
        """The name that queued resources ask for."""
        return f"{self.product.type}-{self.product.units_per_chip * self.chips}"

    @property
    def hosts(self) -> int:
        """Machines."""
        return 1 if self.chips <= self.product.single else self.chips // CHIPS_OF_HOST

    @property
    def chips_of_host(self) -> int:
        return self.chips // self.hosts


def find(topology: str) -> Slice:
    """The slice that a topology such as v5e:4x4 names.

    Raises:
      ValueError: it names none.
    """
    version, _, shape = topology.partition(":")
    axes = shape.split("x")
    if version not in PRODUCTS or not all(axis.isdecimal() and int(axis) for axis in axes):
        raise ValueError(
            f"--topology {topology!r}: give a version ({', '.join(PRODUCTS)}) and its shape in "
            "chips, such as v5e:4x4"
        )
    chips = math.prod(map(int, axes))
    if chips > CHIPS_OF_HOST and chips % CHIPS_OF_HOST:
        raise ValueError(f"--topology {topology!r}: {chips} chips fill no machines of 4")
    return Slice(PRODUCTS[version], shape, chips)


def check_reachable(job: Job, experiment: Experiment, root: Path) -> None:
    """Refuses what the machines could not read or write, before they are paid for.

    They get the files of the clone that git does not ignore. TFDS datasets without a path, Graft's
    own among them, are fetched and built by the machines.

    Raises:
      ValueError: names everything that is on this machine alone, and what to give in its place.
    """
    clone_files = _clone_files(job, root)
    missing = [
        f"{_only_here(path)} and give --config.{key}=gs://BUCKET/PATH"
        for key, path in _paths(experiment).items()
        if _is_missing(clone_files, path)
    ]
    _refuse([*missing, *_missing_files(clone_files, {"--config": job.config})])


def check_study(job: StudyJob, experiments: Iterable[Experiment], root: Path) -> Slice:
    """Refuses the same of a study's trials, and slices of several machines; the slice of a share.

    Raises:
      ValueError: names everything.
    """
    chips = find(job.topology)
    if chips.hosts > 1 or job.slices > 1:
        raise ValueError(
            f"--topology {job.topology}, --slices {job.slices}: a share of a study runs its trials "
            f"on one machine, of {chips.product.single} chips at most; --shares N takes N of them"
        )
    clone_files = _clone_files(job, root)
    lines = {
        f"{_only_here(path)} and name gs://BUCKET/PATH as {key} in the study or its config"
        for experiment in experiments
        for key, path in _paths(experiment).items()
        if path not in job.bases and _is_missing(clone_files, path)
    }
    _refuse([*sorted(lines), *_missing_files(clone_files, {"--study": f"{job.study}/study.py"})])
    return chips


def _clone_files(job: Job, root: Path) -> list[str]:
    if not job.workdir.startswith("gs://"):
        raise ValueError(
            f"--workdir {job.workdir}: the machines of a slice share no disk, and lose their own "
            "when they are preempted; give gs://BUCKET/FOLDER"
        )
    return clone.files(root)


def _paths(experiment: Experiment) -> dict[str, str | None]:
    """Key -> what a run reads."""
    return {
        "tokenizer": experiment.tokenizer,
        "init_from": experiment.init_from,
        "loss.teacher": experiment.loss.teacher,
        **{
            f"data.sources[{number}].path": source.path
            and source.path.replace("{split}", source.split)
            for number, source in enumerate(experiment.data.sources)
        },
    }


def _is_missing(clone_files: list[str], path: str | None) -> bool:
    return bool(path and "://" not in path and not _is_among(clone_files, path))


def _only_here(path: str | None) -> str:
    return f"{path} is on this machine only: copy it to a bucket (gcloud storage cp --recursive)"


def _missing_files(clone_files: list[str], flags: Mapping[str, str]) -> list[str]:
    return [
        f"{flag} {name}: name a file of the clone, from its root, that git does not ignore"
        for flag, file in flags.items()
        if not _is_among(clone_files, name := file.partition(":")[0])
    ]


def _refuse(lines: list[str]) -> None:
    if lines:
        raise ValueError("\n".join(lines))


def _is_among(names: list[str], path: str) -> bool:
    """Whether a path below the clone's root is one of its files, a folder or a pattern of them."""
    path = posixpath.normpath(path)
    return any(name.startswith(f"{path}/") for name in names) or bool(fnmatch.filter(names, path))
