"""Law: a licence notice and the key of its licence, split by near-duplicate cluster.

Notices are the `is_license_notice` rules of ScanCode's licence database, longer than 80
characters, whose expression is one key; false positives and deprecated rules are left out.
The labels are the 25 most frequent keys that occur in at least 20 clusters, so that validation
and test can hold notices of every key that resemble nothing in training.

Split: texts whose word 5-grams have a Jaccard similarity of 0.5 or more form clusters (connected
components, exact over all pairs), and a whole cluster goes to one split. Clusters are taken in
the order of a hash of their smallest id; one goes to test (13% of every key's rows) if it fits
what each of its keys still needs there, else to validation (7%), else to training. So very large
clusters (the GPL family, the BSD family) are training data. `info.metadata["leak"]` compares this
with a random split of the same sizes.
"""

from __future__ import annotations

import collections
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import yaml

from research.data.builders.archives import read_members
from research.data.builders.assets import ASSETS, fetch
from research.text.near_duplicates import clusters, nearest_similarity

ASSET = "licensedcode-data"
LABEL_COUNT = 25
MIN_CHARACTERS = 80  # a notice is longer
MIN_CLUSTERS = 20
THRESHOLD = 0.5
TEST_SHARE, VALIDATION_SHARE = 0.13, 0.07
SPLITS = ("train", "validation", "test")

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*\r?\n(.*)\Z", re.DOTALL)
_SINGLE_KEY = re.compile(r"[A-Za-z0-9.+_-]+")
_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times as fast


@dataclass(frozen=True)
class Notice:
    """One licence notice; `id` is the name of its rule (it holds the key: never show it)."""

    id: str
    text: str
    label: str


def parse_rule(name: str, content: str) -> Notice | None:
    """The notice in a .RULE file, or None if it is no plain single-key notice.

    Raises:
        ValueError: the front matter is no YAML mapping.
    """
    match = _FRONT_MATTER.match(content)
    if match is None or "is_license_notice" not in match.group(1):
        return None
    try:
        fields = yaml.load(match.group(1), Loader=_YamlLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: front matter is not YAML: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{name}: front matter is {type(fields).__name__}, not a mapping")
    if not fields.get("is_license_notice"):
        return None
    if fields.get("is_false_positive") or fields.get("is_deprecated"):
        return None
    label = str(fields.get("license_expression", ""))
    # {{...}} is the database's mark around telling phrases: no part of the notice.
    text = match.group(2).replace("{{", "").replace("}}", "").strip()
    if len(text) <= MIN_CHARACTERS or not _SINGLE_KEY.fullmatch(label):
        return None
    return Notice(PurePosixPath(name).stem, text, label)


def frequent_labels(
    labels: Sequence[str], cluster: np.ndarray, count: int, min_clusters: int
) -> list[str]:
    """The `count` most frequent labels among those in at least `min_clusters` clusters."""
    clusters_of: dict[str, set[int]] = collections.defaultdict(set)
    for label, number in zip(labels, cluster.tolist(), strict=True):
        clusters_of[label].add(number)
    frequency = collections.Counter(labels)
    sorted_labels = sorted(frequency, key=lambda label: (-frequency[label], label))
    return [label for label in sorted_labels if len(clusters_of[label]) >= min_clusters][:count]


def split_clusters(names: Sequence[str], labels: Sequence[str], cluster: np.ndarray) -> list[str]:
    """The split of each row [N]; whole clusters, in hash order, stratified as the module says."""
    totals = collections.Counter(labels)
    shares = {"test": TEST_SHARE, "validation": VALIDATION_SHARE}
    quotas = {
        split: {label: math.ceil(share * n) for label, n in totals.items()}
        for split, share in shares.items()
    }
    members: dict[int, list[int]] = collections.defaultdict(list)
    for i, number in enumerate(cluster.tolist()):
        members[number].append(i)

    def rank(rows: list[int]) -> bytes:
        return hashlib.blake2b(min(names[i] for i in rows).encode(), digest_size=8).digest()

    split = ["train"] * len(names)
    for rows in sorted(members.values(), key=rank):
        label_counts = collections.Counter(labels[i] for i in rows)
        for candidate, remaining in quotas.items():
            if all(n <= remaining[label] for label, n in label_counts.items()):
                for label, n in label_counts.items():
                    remaining[label] -= n
                for i in rows:
                    split[i] = candidate
                break
    return split


def _twin_share(texts: Sequence[str], split: Sequence[str]) -> float:
    """Share of test rows with a training row at or above the threshold."""
    train = [text for text, side in zip(texts, split, strict=True) if side == "train"]
    test = [text for text, side in zip(texts, split, strict=True) if side == "test"]
    return float((nearest_similarity(test, train)[0] >= THRESHOLD).mean())


def frequent_notices() -> tuple[list[Notice], np.ndarray]:
    """The notices of the most frequent labels, and the cluster number of each [N] int64."""
    rules = (
        parse_rule(name, content.decode("utf-8"))
        for name, content in read_members(fetch(ASSET), ASSETS[ASSET].members)
    )
    notices = [notice for notice in rules if notice is not None]
    # Clusters over all keys first: which keys have enough of them decides what is kept.
    frequency = collections.Counter(notice.label for notice in notices)
    notices = [notice for notice in notices if frequency[notice.label] >= MIN_CLUSTERS]
    cluster = clusters([notice.text for notice in notices], THRESHOLD)
    labels = frequent_labels([n.label for n in notices], cluster, LABEL_COUNT, MIN_CLUSTERS)
    if not labels:
        name = ASSETS[ASSET].filename
        raise ValueError(f"{name}: no licence key has notices in {MIN_CLUSTERS} clusters")
    rows = [i for i, notice in enumerate(notices) if notice.label in labels]
    return [notices[i] for i in rows], cluster[rows]


class Builder(tfds.core.GeneratorBasedBuilder):
    """Features text, label, id, cluster; `info.metadata` has labels, counts, leak, sizes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Licence notices and the licence key of each, without near twins.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "text": tfds.features.Text(),
                    "label": tfds.features.Text(),
                    "cluster": tfds.features.Scalar(np.int64),
                }
            ),
            homepage=ASSETS[ASSET].homepage,
            license=ASSETS[ASSET].licence,
            citation="nexB Inc. and others: ScanCode LicenseDB.",
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        del dl_manager  # assets are fetched, pinned and cached by research.data.builders.assets
        notices, cluster = frequent_notices()
        texts, labels = [n.text for n in notices], [n.label for n in notices]
        split = split_clusters([n.id for n in notices], labels, cluster)
        leak = _twin_share(texts, split)
        if leak > 0:
            raise ValueError(f"{leak:.2%} of test rows have a near twin in training: a split bug")
        random_split = [split[i] for i in np.random.default_rng(0).permutation(len(split))]
        counts = {
            side: collections.Counter(n for n, s in zip(labels, split, strict=True) if s == side)
            for side in SPLITS
        }
        self.info.metadata.update(
            **ASSETS[ASSET].provenance(),
            labels=sorted(set(labels)),
            counts={side: dict(sorted(count.items())) for side, count in counts.items()},
            clusters={
                side: len({c for c, s in zip(cluster.tolist(), split, strict=True) if s == side})
                for side in SPLITS
            },
            leak={
                "threshold": THRESHOLD,
                "this_split": leak,
                "random_split": _twin_share(texts, random_split),
            },
            # How often the notice says its own key letter by letter, as in "gpl-2.0".
            key_verbatim=float(np.mean([n.label in n.text.lower() for n in notices])),
        )

        def examples(side: str) -> Iterator[tuple[str, dict]]:
            for notice, number, own in zip(notices, cluster.tolist(), split, strict=True):
                if own == side:
                    example = {"id": notice.id, "text": notice.text, "label": notice.label}
                    yield notice.id, {**example, "cluster": number}

        return {side: examples(side) for side in SPLITS}

    def _generate_examples(self, **kwargs: Any) -> Iterator[tuple[str, dict]]:
        raise NotImplementedError("the examples come from _split_generators")
