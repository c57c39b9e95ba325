"""Base of the builders of labelled records: splits by near-duplicate cluster."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from research.data.builders.archives import read_members
from research.data.builders.assets import ASSETS, fetch
from research.text.near_duplicates import clusters

# Jaccard similarity of word 5-grams from which two texts share a split.
THRESHOLD = 0.5
REST = -1  # a split that takes what the others leave


@dataclass(frozen=True)
class Record:
    """One labelled record.

    Attributes:
      text: by which near duplicates are found, and which names it.
      fields: what the dataset has of it.
    """

    text: str
    fields: Mapping[str, Any]


def split_records(
    records: Sequence[Record], sizes: Mapping[str, int], threshold: float = THRESHOLD
) -> dict[str, list[Record]]:
    """Split -> records, whole clusters in the order of a hash, each with its `id` and `cluster`.

    Args:
      records: those with the text of an earlier one are left out.
      sizes: split -> number of records at most, which whole clusters may leave unreached; `REST`
        takes what the others leave.
      threshold: similarity from which two records share a split.

    Raises:
      ValueError: there are too few records for a split to have any.
    """
    unique = list({record.text: record for record in reversed(records)}.values())[::-1]
    numbers = clusters([record.text for record in unique], threshold).tolist()
    ids = [hashlib.blake2b(record.text.encode(), digest_size=8).hexdigest() for record in unique]
    members: dict[int, list[int]] = collections.defaultdict(list)
    for row, number in enumerate(numbers):
        members[number].append(row)
    splits: dict[str, list[Record]] = {split: [] for split in sizes}
    limits = {split: len(unique) if size == REST else size for split, size in sizes.items()}
    # those of a given size first
    order = sorted(sizes, key=lambda split: sizes[split] == REST)
    for rows in sorted(members.values(), key=lambda rows: min(ids[row] for row in rows)):
        for split in order:
            if len(splits[split]) + len(rows) <= limits[split]:
                splits[split] += [_with_name(unique[row], ids[row], numbers[row]) for row in rows]
                break
    for split, part in splits.items():
        if not part:
            raise ValueError(f"{len(unique)} records are too few for the split {split}")
    return splits


def _with_name(record: Record, name: str, cluster: int) -> Record:
    return Record(record.text, {**record.fields, "id": name, "cluster": cluster})


class LabelledBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A dataset of labelled records of one package; a subclass says what is read of it.

    Attributes:
      ASSET: name of the package.
      MEMBERS: regular expression that the path of a file in it matches; None: the asset's own.
      SIZES, THRESHOLD: see `split_records`.
      FIELDS: the features of a record beside its id and cluster.
    """

    ASSET: ClassVar[str]
    MEMBERS: ClassVar[str | None] = None
    SIZES: ClassVar[Mapping[str, int]]
    THRESHOLD: ClassVar[float] = THRESHOLD
    FIELDS: ClassVar[Mapping[str, Any]]

    def records(self, name: str, content: bytes) -> Iterator[Record]:
        """The records of one file of the package.

        Raises:
          ValueError: it is not what it should be; names the line.
        """
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        asset = ASSETS[self.ASSET]
        return tfds.core.DatasetInfo(
            builder=self,
            description=(type(self).__doc__ or "").partition("\n")[0],
            features=tfds.features.FeaturesDict(
                {"id": tfds.features.Text(), "cluster": tfds.features.Scalar(np.int64)}
                | dict(self.FIELDS)
            ),
            homepage=asset.homepage,
            license=asset.licence,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        del dl_manager  # assets are fetched, pinned and cached by research.data.builders.assets
        asset = ASSETS[self.ASSET]
        files = read_members(fetch(self.ASSET), self.MEMBERS or asset.members)
        records = [record for name, content in files for record in self.records(name, content)]
        splits = split_records(records, self.SIZES, self.THRESHOLD)
        self.info.metadata.update(**asset.provenance())

        def examples(split: str) -> Iterator[tuple[str, dict]]:
            for record in splits[split]:
                yield record.fields["id"], dict(record.fields)

        return {split: examples(split) for split in splits}

    def _generate_examples(self, **kwargs: Any) -> Iterator[tuple[str, dict]]:
        raise NotImplementedError("the examples come from _split_generators")
