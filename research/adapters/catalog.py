"""Adapters as things to hold: what there is in a folder, sums of them, several side by side.

An adapter is a run that was tuned on a base: its folder holds what was attached, and names the base
by its fingerprint. Merging and unmerging are in `research.adapters.merging`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from etils import epath

from research.checkpoints import runs
from research.checkpoints.checkpoint import Checkpoint
from research.checkpoints.checkpointer import open_checkpoint
from research.checkpoints.runs import Run
from research.runtime import storage

log = logging.getLogger(__name__)


def list_adapters(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What the tuned runs in a folder and the folders in it are, by path, as rows of a table."""
    found = []
    for path in _runs(storage.absolute(folder)):
        try:
            saved = open_checkpoint(path)
            if saved.metadata()["base"] is not None:
                found.append(describe(saved))
        except (OSError, ValueError, KeyError) as error:
            log.warning("%s is left out: %s", path, error)
    return found


def _runs(folder: epath.Path) -> Iterator[epath.Path]:
    """Every folder with a finished model, by path; in buckets too, which know no `**`."""
    for inside in sorted(folder.iterdir()):
        if inside.name == "model" and storage.is_folder(inside):
            yield folder
        elif inside.name != "checkpoints" and storage.is_folder(inside):
            yield from _runs(inside)


def open_named(texts: Sequence[str], base: str | None = None) -> dict[str, Run]:
    """Runs by name, of texts such as `law=runs/law`.

    Raises:
      ValueError: not such a text, or a name twice.
      FileNotFoundError: no run there.
    """
    named: dict[str, Run] = {}
    for text in texts:
        name, found, path = text.partition("=")
        if not found or not name.isidentifier() or not path:
            raise ValueError(f"{text!r}: write it as NAME=RUN, such as law=runs/law")
        if name in named:
            raise ValueError(f"{text!r}: the name {name} is given twice")
        named[name] = runs.open_run(path, base)
    return named


def describe(saved: Checkpoint) -> dict[str, Any]:
    """What an adapter is, in a row of a table; its base need not be there.

    Raises:
      ValueError: what it says of itself does not fit this version.
    """
    metadata, own = saved.metadata(), saved.checksums("model/")
    method = runs.method_of(metadata, str(saved.path))
    sizes = {name: math.prod(checksum.shape) for name, checksum in own.items()}
    stored = {name: jnp.dtype(own[name].dtype).itemsize * size for name, size in sizes.items()}
    base = metadata["base"]
    return {
        "path": str(saved.path.parent.parent),
        "method": method.kind,
        "adapters": ", ".join(method.bank_names or method.adapter_names),
        "parameters": sum(sizes.values()),
        "bytes": sum(stored.values()),
        "base": base["path"] + ("" if storage.absolute(base["path"]).exists() else " (gone)"),
        "base_fingerprint": base["fingerprint"][:16],
    }
