"""Datasets that TFDS prepared."""

import hashlib
import json
import os
from typing import Any

from research.data.sources.base import Records, Source, SourceConfig
from research.data.sources.files import digest

# Files of a prepared dataset up to this size are hashed whole.
_WHOLE_FILE = 64 * 2**20


def open_tfds(config: SourceConfig, split: str) -> Source:
    """A split of one of our builders."""
    from research.data import builders  # Here: TFDS takes a second to import.

    records: Any = builders.load(config.name, split, data_dir=config.path)
    place = f"TFDS dataset {config.name!r}, split {split!r}"

    def fingerprint() -> str:
        """Name, version, split and the size and digest of its files (large ones: their ends)."""
        info = records.dataset_info
        files = sorted(info.splits[split].filepaths, key=os.fspath)
        digests = []
        for path in files:
            with path.open("rb") as file:
                digests.append((path.name, digest(file, _WHOLE_FILE)))
        parts = [info.name, str(info.version), split, len(records), digests]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    return Records(config, split, records, fingerprint, lambda i: f"{place}, row {i}")
