"""Education: a question on how one quantity changes with another, and two answers (QuaRTz).

Questions are those of the evaluation `quartz` of the package (Tafjord 2019, arXiv:1909.03553).
Most come in pairs that differ in a word and in the answer (9 in 10): these share a split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from research.data.builders.labelled import REST, LabelledBuilder, Record

_QUESTION = re.compile(r"\A(.+)\n\n A: (.+)\n B: (.+)\Z", re.DOTALL)


class Builder(LabelledBuilder):
    """Questions on how one quantity changes with another, with two options each."""

    VERSION = tfds.core.Version("1.0.0")
    ASSET = "evals"
    MEMBERS = r"evals/registry/data/quartz/samples\.jsonl"
    SIZES = {"train": REST, "validation": 300, "test": 700}
    # the two of a pair differ in a word, and so in up to five 5-grams of some fifteen
    THRESHOLD = 0.15
    FIELDS = {
        "prompt": tfds.features.Text(),
        "choices": tfds.features.Sequence(tfds.features.Text()),
        "completion": tfds.features.Text(),
    }

    def records(self, name: str, content: bytes) -> Iterator[Record]:
        for number, line in enumerate(content.splitlines(), start=1):
            sample = json.loads(line)
            match = _QUESTION.match(sample["input"][-1]["content"])
            if match is None or sample["ideal"] not in ("A", "B"):
                raise ValueError(f"{name}:{number}: no question with the options A and B")
            prompt, *choices = (part.strip() for part in match.groups())
            if choices[0] == choices[1]:
                continue
            right = choices["AB".index(sample["ideal"])]
            fields = {"prompt": prompt, "choices": choices, "completion": right}
            yield Record(prompt, fields)
