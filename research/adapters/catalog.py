"""Listing the adapters in a folder, and opening them by name.

An adapter is a run that was tuned on a base: its folder holds what was attached, and names the base
by its fingerprint.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import operator
import os
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from etils import epath

from research.checkpoints import runs
from research.checkpoints.checkpoint import Checkpoint
from research.checkpoints.checkpointer import open_checkpoint
from research.checkpoints.runs import Run
from research.runtime import storage

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class AdapterSummary:
    """An adapter as a row of a table.

    Attributes:
      path: its run's folder.
      method: its kind.
      adapters: the names under which it stands in sites, or those of a bank, joined by commas.
      parameters: how many it has.
      bytes: their size as they are stored.
      base: the path of its base, marked if that is gone.
      base_fingerprint: the first 16 digits.
    """

    path: str
    method: str
    adapters: str
    parameters: int
    bytes: int
    base: str
    base_fingerprint: str


def list_adapters(folder: str | os.PathLike[str]) -> list[AdapterSummary]:
    """The adapters in a folder and the folders in it, by path."""
    summaries = []
    for path in _run_folders(storage.absolute(folder)):
        try:
            checkpoint = open_checkpoint(path)
            if checkpoint.metadata()["base"] is not None:
                summaries.append(summarize(checkpoint))
        except (OSError, ValueError, KeyError) as error:
            log.warning("%s is left out: %s", path, error)
    return summaries


def _run_folders(folder: epath.Path) -> Iterator[epath.Path]:
    """Every folder with a finished model, by path; also in buckets, which have no `**`."""
    for inside in sorted(folder.iterdir()):
        if inside.name == "model" and storage.is_folder(inside):
            yield folder
        elif inside.name != "checkpoints" and storage.is_folder(inside):
            yield from _run_folders(inside)


def open_named(texts: Sequence[str], base: str | None = None) -> dict[str, Run]:
    """Opens runs given as texts such as `law=runs/law`, by name.

    Raises:
      ValueError: a text of another form, or a name twice.
      FileNotFoundError: no run there.
    """
    runs_by_name: dict[str, Run] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator or not name.isidentifier() or not path:
            raise ValueError(f"{text!r}: write it as NAME=RUN, such as law=runs/law")
        if name in runs_by_name:
            raise ValueError(f"{text!r}: the name {name} is given twice")
        runs_by_name[name] = runs.open_run(path, base)
    return runs_by_name


def summarize(checkpoint: Checkpoint) -> AdapterSummary:
    """The summary of an adapter, whose base need not be there.

    Raises:
      ValueError: its metadata does not fit this version.
      CheckpointError: a file of it is missing or damaged.
    """
    metadata, checksums = checkpoint.metadata(), checkpoint.checksums("model/")
    method = runs.method_of(metadata, str(checkpoint.path))
    with checkpoint.errors_in("metadata.json"):
        base = {name: str(metadata["base"][name]) for name in ("path", "fingerprint")}
    sizes = [math.prod(checksum.shape) for checksum in checksums.values()]
    item_sizes = [jnp.dtype(checksum.dtype).itemsize for checksum in checksums.values()]
    return AdapterSummary(
        path=str(checkpoint.path.parent.parent),
        method=method.kind,
        adapters=", ".join(method.bank_names or method.adapter_names),
        parameters=sum(sizes),
        bytes=sum(map(operator.mul, item_sizes, sizes)),
        base=base["path"] + ("" if storage.absolute(base["path"]).exists() else " (gone)"),
        base_fingerprint=base["fingerprint"][:16],
    )
