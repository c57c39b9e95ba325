"""Healthcare: a patient's record in a line, and whether they have diabetes or prediabetes.

Records are the answers of a survey (age, race, body mass index, exercise, blood pressure), as the
evaluation `diabetes` of the package words them, with numbers rounded. A description occurs once,
with the label of its first record: no test row is in training. What splits still share is what
patients have in common. Each split has as many rows of either label, where the survey has 15% of
"yes". Rows are drawn in the order of a hash of their text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from research.data.builders.archives import read_members
from research.data.builders.assets import ASSETS, fetch

ASSET = "evals"
LABELS = {"0": "no", "1": "yes"}
# rows of each split, half of them of either label
SIZES = {"train": 4_400, "validation": 600, "test": 1_000}

_NUMBER = re.compile(r"\d+\.\d+")


def describe(content: str) -> str:
    """A record as a line, its numbers with at most one digit behind the point.

    `Age: Age 58.0 to 62.0, Race:..., BMI:40.18, ...` -> `Age 58 to 62, Race: ..., BMI: 40.2, ...`
    """
    rounded = _NUMBER.sub(lambda match: f"{float(match.group()):.1f}".removesuffix(".0"), content)
    spaced = re.sub(r":(?=\S)", ": ", rounded.removeprefix("Age: "))
    return spaced.strip().removesuffix(".")


def read_records() -> dict[str, str]:
    """Description -> label, each description once."""
    ((name, content),) = read_members(fetch(ASSET), ASSETS[ASSET].members)
    records: dict[str, str] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        sample = json.loads(line)
        if sample["ideal"] not in LABELS:
            raise ValueError(f"{name}:{number}: the label {sample['ideal']!r} is neither 0 nor 1")
        records.setdefault(describe(sample["input"][-1]["content"]), LABELS[sample["ideal"]])
    return records


def split_records(records: dict[str, str]) -> dict[str, list[tuple[str, str]]]:
    """Split -> (description, label), in hash order, as many of either label."""
    order = sorted(records, key=lambda text: hashlib.blake2b(text.encode()).digest())
    of_label = {
        label: [text for text in order if records[text] == label] for label in ("no", "yes")
    }
    splits: dict[str, list[tuple[str, str]]] = {}
    start = 0
    for split, size in SIZES.items():
        rows = [
            (text, label)
            for label, texts in of_label.items()
            for text in texts[start : start + size // 2]
        ]
        if len(rows) < size:
            raise ValueError(f"{len(records)} descriptions are too few for the split {split}")
        rank = {text: number for number, text in enumerate(order)}
        splits[split] = sorted(rows, key=lambda row: rank[row[0]])
        start += size // 2
    return splits


class Builder(tfds.core.GeneratorBasedBuilder):
    """Features text, label, id; `info.metadata` has where it is from."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Survey records of patients, and whether they have diabetes.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "text": tfds.features.Text(),
                    "label": tfds.features.Text(),
                }
            ),
            homepage=ASSETS[ASSET].homepage,
            license=ASSETS[ASSET].licence,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        del dl_manager  # assets are fetched, pinned and cached by research.data.builders.assets
        splits = split_records(read_records())
        self.info.metadata.update(**ASSETS[ASSET].provenance(), labels=sorted(LABELS.values()))

        def examples(split: str) -> Iterator[tuple[str, dict]]:
            for text, label in splits[split]:
                key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
                yield key, {"id": key, "text": text, "label": label}

        return {split: examples(split) for split in splits}

    def _generate_examples(self, **kwargs: Any) -> Iterator[tuple[str, dict]]:
        raise NotImplementedError("the examples come from _split_generators")
