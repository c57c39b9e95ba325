"""TFDS builders: `load(name, split)` gives a random-access source, built on its first use.

    source = load("graft_books", "train")
    source[0]  # {"id": b"...", "text": b"..."}

A builder is one folder `<name>/` with a module `<name>_dataset_builder.py` that defines `Builder`;
adding one needs no other edit. Data is written as ArrayRecord, without TensorFlow.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from research.config.suggestions import suggestion
from research.runtime.locks import lock_file

logger = logging.getLogger(__name__)

# what the system says of a disk that takes no more
_DISK = re.compile(r"No space left on device|Disk quota exceeded|File too large|Read-only file sys")


def default_data_dir() -> Path:
    """The built data's folder: environment variable GRAFT_DATA, or ~/.cache/graft/tfds."""
    return Path(os.environ.get("GRAFT_DATA") or Path.home() / ".cache/graft/tfds")


def available() -> list[str]:
    """Names of all builders, sorted."""
    modules = [p for folder in __path__ for p in Path(folder).glob("*/*_dataset_builder.py")]
    return sorted(p.parent.name for p in modules if p.stem == f"{p.parent.name}_dataset_builder")


def prepare_builder(name: str, data_dir: str | Path | None = None) -> tfds.core.DatasetBuilder:
    """The builder `name`, its data on disk (built now if it was not).

    Its `info.metadata` says what the data was made from. A build that dies leaves no data behind;
    several processes may call this at once, and one of them builds.

    Raises:
        ValueError: no builder has this name; the message names the nearest.
    """
    names = available()
    if name not in names:
        raise ValueError(f"unknown dataset {name!r}{suggestion(name, names)}")
    module = importlib.import_module(f"{__name__}.{name}.{name}_dataset_builder")
    root = Path(data_dir or default_data_dir()).expanduser()
    builder = module.Builder(data_dir=root, file_format="array_record")
    if not _is_built(builder):
        with lock_file(root / f".{name}.lock"):  # several processes may ask; one of them builds
            builder = module.Builder(data_dir=root, file_format="array_record")
            if not _is_built(builder):
                _build(builder)
    _check_pin(builder)
    return builder


def load(name: str, split: str, data_dir: str | Path | None = None) -> Sequence[Mapping[str, Any]]:
    """One split of a dataset as a source with `len()` and `[i] -> dict` (texts are bytes).

    Args:
        name: one of `available()`.
        split: "train", "heldout", ...; the builder's `info.splits` lists them.
        data_dir: where built data lives; default `default_data_dir()`.

    Raises:
        ValueError: unknown name or split.
    """
    builder = prepare_builder(name, data_dir)
    if split.partition("[")[0] not in builder.info.splits:
        split_names = ", ".join(builder.info.splits)
        raise ValueError(f"dataset {name!r} has no split {split!r} (it has: {split_names})")
    return builder.as_data_source(split=split)


def _is_built(builder: tfds.core.DatasetBuilder) -> bool:
    return (builder.data_path / "dataset_info.json").exists()  # written last, before the rename


def _check_pin(builder: tfds.core.DatasetBuilder) -> None:
    source_sha256 = dict(builder.info.metadata.items()).get("sha256")
    # here: as a program, `assets` must not be imported before it runs
    from research.data.builders.assets import ASSETS

    if source_sha256 and source_sha256 not in {asset.sha256 for asset in ASSETS.values()}:
        raise ValueError(
            f"{builder.data_dir} was built from an asset that is no longer pinned (sha256 "
            f"{source_sha256[:12]}...): remove that folder to build it again"
        )


def _build(builder: tfds.core.DatasetBuilder) -> None:
    for stale in Path(builder.data_dir).parent.glob("incomplete.*"):
        shutil.rmtree(stale, ignore_errors=True)  # left by a killed build; we hold the lock
    tfds.disable_progress_bar()
    start = time.perf_counter()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # TFDS prints; stdout is the caller's
            builder.download_and_prepare(file_format="array_record")
    except (OSError, RuntimeError) as error:  # the latter of ArrayRecord's writer
        if reason := _DISK.search(str(error)):
            raise OSError(
                f"{builder.name} cannot be built in {builder.data_dir}: {reason[0]}. Free disk "
                "space, or set GRAFT_DATA, or the source's `path`, to a folder elsewhere"
            ) from error
        raise
    counts = ", ".join(f"{s.num_examples} {name}" for name, s in builder.info.splits.items())
    source = builder.info.metadata["source"]
    seconds = time.perf_counter() - start
    logger.info("built %s from %s: %s documents, %.1f s", builder.name, source, counts, seconds)
