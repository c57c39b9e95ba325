"""Datasets of TFDS: our own builders, and any other by its name."""

import dataclasses
import hashlib
import json
import os
from typing import Any, Literal

from research.config.suggestions import suggestion
from research.data.sources.base import RecordsConfig, Source
from research.data.sources.files import digest
from research.data.sources.records import Records

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
            """Name, version, split, size and digest of its files (of large ones the ends).

            Of a small one with several fields, of its records: TFDS writes the fields of a record
            in another order each time that it prepares them.
            """
            info = records.dataset_info
            contents = info.splits[split]
            several_fields = len(records) > 0 and len(records[0]) > 1
            if several_fields and contents.num_bytes <= _WHOLE_FILE:
                digests: list[Any] = [_digest_of_records(records)]
            else:
                digests = []
                for path in sorted(contents.filepaths, key=os.fspath):
                    with path.open("rb") as file:
                        digests.append((path.name, digest(file, _WHOLE_FILE)))
            parts = [info.name, str(info.version), split, len(records), digests]
            return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

        return Records(self, split, records, fingerprint, lambda i: f"{place}, row {i}")


def _digest_of_records(records: Any) -> str:
    """The content of records, whatever the order of their fields."""
    from tensorflow_datasets.proto import tf_example_pb2  # Here: it takes a second.

    hasher = hashlib.sha256()
    for record in records.data_source.__getitems__(range(len(records))):
        fields = tf_example_pb2.Example.FromString(record).features.feature
        for name in sorted(fields):
            content = fields[name].SerializeToString()
            hasher.update(f"{name} {len(content)} ".encode() + content)
    return hasher.hexdigest()


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
