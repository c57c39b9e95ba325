"""Datasets of TFDS: our own builders, and any other by its name."""

import dataclasses
import hashlib
import json
import os
from typing import Any, Literal

from research.config.suggestions import suggestion
from research.data.sources.base import Records, RecordsConfig, Source
from research.data.sources.files import digest

# Files of a prepared dataset up to this size are hashed whole.
_WHOLE_FILE = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class TfdsConfig(RecordsConfig):
    """A dataset of TFDS; `name` is also that of the dataset."""

    # The data folder; None: the default one.
    path: str | None = None
    kind: Literal["tfds"] = "tfds"

    @property
    def license(self) -> str | None:
        """As the dataset says it."""
        from research.data import builders  # Here: it imports TFDS, which takes a second.

        return (
            builders.prepare_builder(self.name, self.path).info.redistribution_info.license or None
        )

    def open(self, split: str) -> Source:
        """A split of a dataset; it is prepared first where it was not."""
        records: Any = _load(self, split)
        place = f"TFDS dataset {self.name!r}, split {split!r}"

        def fingerprint() -> str:
            """Name, version, split, size and digest of its files (of large ones the ends)."""
            info = records.dataset_info
            files = sorted(info.splits[split].filepaths, key=os.fspath)
            digests = []
            for path in files:
                with path.open("rb") as file:
                    digests.append((path.name, digest(file, _WHOLE_FILE)))
            parts = [info.name, str(info.version), split, len(records), digests]
            return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

        return Records(self, split, records, fingerprint, lambda i: f"{place}, row {i}")


def _load(config: TfdsConfig, split: str) -> Any:
    """Our own builder of this name, or TFDS's, or what is prepared under it in the data folder.

    Raises:
        ValueError: there is none, or it has no such split.
    """
    import tensorflow_datasets as tfds  # Here: it takes a second.

    from research.data import builders

    if config.name in builders.available():
        return builders.load(config.name, split, data_dir=config.path)
    folder = os.path.expanduser(config.path or builders.default_data_dir())
    try:
        builder = tfds.builder(config.name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
        raise ValueError(
            f"There is no dataset {config.name!r}, neither in TFDS nor prepared in {folder}"
            f"{suggestion(config.name, builders.available())}"
        ) from None
    if not builder.is_prepared():
        builder.download_and_prepare(file_format="array_record")
    if split.partition("[")[0] not in builder.info.splits:
        known = ", ".join(builder.info.splits)
        raise ValueError(f"Dataset {config.name!r} has no split {split!r}, only {known}.")
    try:
        return builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise ValueError(
            f"Dataset {config.name!r} in {folder} has no random access: prepare it again with "
            'file_format="array_record".'
        ) from error
