"""Base of the builders of plain documents: features, metadata, and an honest held-out split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from research.text.near_duplicates import clusters

HELDOUT_SHARE = 0.03
HELDOUT_BYTES = 60_000
HELDOUT_MOST = 0.2  # of a tiny corpus
# Half of the shorter document's word 5-grams in the other one: they share a split.
CONTAINMENT = 0.5


@dataclass(frozen=True)
class Document:
    """One document. Documents with the same `work` always share a split."""

    id: str
    text: str
    work: str | None = None


def _rank(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def held_out(names: Sequence[str], groups: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which documents are held out, [N] bool: about 3% of the bytes, in whole groups.

    Groups are taken in the order of a hash of their smallest name until the target is reached, so
    the choice does not depend on the documents' order. The target is 3% of the bytes, but at
    least 60 kB, but at most a fifth; a group above the target stays in training.

    Args:
        names: N distinct document ids.
        groups: [N] group number of each document.
        sizes: [N] bytes of each document.

    Raises:
        ValueError: no group is small enough, so nothing could be held out.
    """
    total = int(sizes.sum())
    target = max(HELDOUT_SHARE * total, min(HELDOUT_BYTES, HELDOUT_MOST * total))
    smallest: dict[int, str] = {}
    size: dict[int, int] = {}
    for name, group, count in zip(names, groups.tolist(), sizes.tolist(), strict=True):
        smallest[group] = min(name, smallest.get(group, name))
        size[group] = size.get(group, 0) + count
    chosen: set[int] = set()
    taken = 0
    for group in sorted(smallest, key=lambda group: _rank(smallest[group])):
        if taken >= target:
            break
        if size[group] <= target:
            chosen.add(group)
            taken += size[group]
    if not chosen:
        raise ValueError(
            f"{len(names)} documents in {len(smallest)} groups of near duplicates: none is small "
            f"enough to be held out ({target:.0f} bytes wanted); add documents or cut them"
        )
    return np.isin(groups, list(chosen))


class DocumentBuilder(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]
):
    """A TFDS builder that needs only `documents()` and five lines of description.

    Splits `train` and `heldout`: see `held_out`. Documents that contain half of each other (word
    5-grams, exactly, over all pairs) are never on both sides.
    """

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION: str
    HOMEPAGE: str
    LICENCE: str
    CITATION: str

    def documents(self) -> tuple[list[Document], dict[str, Any]]:
        """All documents, and metadata: `source` (name and version) and whatever else matters."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {"id": tfds.features.Text(), "text": tfds.features.Text()}
            ),
            homepage=self.HOMEPAGE,
            license=self.LICENCE,
            citation=self.CITATION,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        del dl_manager  # assets are fetched, pinned and cached by research.data.builders.assets
        documents, metadata = self.documents()
        documents = sorted((d for d in documents if d.text.strip()), key=lambda d: d.id)
        if not documents:
            raise ValueError(f"{self.name}: {metadata['source']} holds no document")
        sizes = np.array([len(document.text.encode()) for document in documents])
        groups = _groups(documents)
        heldout = held_out([document.id for document in documents], groups, sizes)
        self.info.metadata.update(metadata)
        self.info.metadata["bytes"] = {
            "train": int(sizes[~heldout].sum()),
            "heldout": int(sizes[heldout].sum()),
        }
        self.info.metadata["groups"] = len(np.unique(groups))

        def examples(side: bool) -> Iterator[tuple[str, dict]]:
            for document, out in zip(documents, heldout, strict=True):
                if out == side:
                    yield document.id, {"id": document.id, "text": document.text}

        return {"train": examples(False), "heldout": examples(True)}

    def _generate_examples(self, **kwargs: Any) -> Iterator[tuple[str, dict]]:
        raise NotImplementedError("the examples come from _split_generators")


def _groups(documents: Sequence[Document]) -> np.ndarray:
    """[N] group numbers: works are joined into whole texts first, then near duplicates merge."""
    works: dict[str, list[str]] = {}
    for document in documents:
        works.setdefault(document.work or document.id, []).append(document.text)
    numbers = clusters(
        ["\n".join(parts) for parts in works.values()], CONTAINMENT, measure="containment"
    )
    number = dict(zip(works, numbers.tolist(), strict=True))
    return np.array([number[document.work or document.id] for document in documents])
