"""Base of the builders of plain documents: features, metadata, and an honest held-out split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from research.text.near_duplicates import clusters

HELDOUT_SHARE = 0.03
HELDOUT_BYTES = 60_000
HELDOUT_MAX_SHARE = 0.2  # of a tiny corpus
# Half of the shorter document's word 5-grams in the other one: they share a split.
CONTAINMENT = 0.5


@dataclass(frozen=True)
class Document:
    """One document. Documents with the same `work` always share a split."""

    id: str
    text: str
    work: str | None = None


@dataclass(frozen=True)
class Corpus:
    """All documents of a dataset, and its metadata: `source` (name and version), and the rest."""

    documents: list[Document]
    metadata: Mapping[str, Any]


def _rank(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def choose_heldout(names: Sequence[str], groups: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Mask [N] of the documents to hold out: about 3% of the bytes, in whole groups.

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
    target = max(HELDOUT_SHARE * total, min(HELDOUT_BYTES, HELDOUT_MAX_SHARE * total))
    first_names: dict[int, str] = {}
    group_bytes: dict[int, int] = {}
    for name, group, count in zip(names, groups.tolist(), sizes.tolist(), strict=True):
        first_names[group] = min(name, first_names.get(group, name))
        group_bytes[group] = group_bytes.get(group, 0) + count
    heldout_groups: set[int] = set()
    heldout_bytes = 0
    for group in sorted(first_names, key=lambda group: _rank(first_names[group])):
        if heldout_bytes >= target:
            break
        if group_bytes[group] <= target:
            heldout_groups.add(group)
            heldout_bytes += group_bytes[group]
    if not heldout_groups:
        raise ValueError(
            f"{len(names)} documents in {len(first_names)} groups of near duplicates: none is "
            f"small enough to be held out ({target:.0f} bytes wanted); add documents or cut them"
        )
    return np.isin(groups, list(heldout_groups))


class DocumentBuilder(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]
):
    """A TFDS builder that needs only `read_corpus()` and five lines of description.

    Splits `train` and `heldout`: see `choose_heldout`. Documents that contain half of each other
    (word 5-grams, exactly, over all pairs) are never on both sides.
    """

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION: str
    HOMEPAGE: str
    LICENCE: str
    CITATION: str

    def read_corpus(self) -> Corpus:
        """Reads all documents."""
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
        corpus = self.read_corpus()
        documents = sorted((d for d in corpus.documents if d.text.strip()), key=lambda d: d.id)
        if not documents:
            raise ValueError(f"{self.name}: {corpus.metadata['source']} holds no document")
        sizes = np.array([len(document.text.encode()) for document in documents])
        groups = _groups(documents)
        heldout = choose_heldout([document.id for document in documents], groups, sizes)
        self.info.metadata.update(corpus.metadata)
        self.info.metadata["bytes"] = {
            "train": int(sizes[~heldout].sum()),
            "heldout": int(sizes[heldout].sum()),
        }
        self.info.metadata["groups"] = len(np.unique(groups))

        def examples(is_heldout: bool) -> Iterator[tuple[str, dict]]:
            for document, flag in zip(documents, heldout, strict=True):
                if flag == is_heldout:
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
