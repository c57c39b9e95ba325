"""Education: a parable, and five morals of which one is its own.

Stories are those of the evaluation `parable-to-moral-match-en` of the package; the other morals
are of other stories.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from research.data.builders.labelled import REST, LabelledBuilder, Record

_QUESTION = re.compile(
    r"\A(.+?)\s*\nWhich moral is this story attempting to convey\?.*?"
    r"\nA\) (.+) B\) (.+) C\) (.+) D\) (.+) E\) (.+?)\s*\nThe output should look like",
    re.DOTALL,
)
_RIGHT = re.compile(r"The final answer is: ([A-E])")


class Builder(LabelledBuilder):
    """Parables with five morals each, of which one is right."""

    VERSION = tfds.core.Version("1.0.0")
    ASSET = "evals"
    MEMBERS = r"evals/registry/data/parable-to-moral-match/parable-to-moral-match-en\.jsonl"
    SIZES = {"train": REST, "validation": 200, "test": 600}
    FIELDS = {
        "prompt": tfds.features.Text(),
        "choices": tfds.features.Sequence(tfds.features.Text()),
        "completion": tfds.features.Text(),
    }

    def records(self, name: str, content: bytes) -> Iterator[Record]:
        for number, line in enumerate(content.splitlines(), start=1):
            sample = json.loads(line)
            match = _QUESTION.match(sample["input"][-1]["content"])
            right = _RIGHT.fullmatch(sample["ideal"][0])
            if match is None or right is None:
                raise ValueError(f"{name}:{number}: no story with five morals, A to E")
            story, *morals = (part.strip() for part in match.groups())
            if len(set(morals)) < len(morals):
                continue
            moral = morals["ABCDE".index(right[1])]
            yield Record(story, {"prompt": story, "choices": morals, "completion": moral})
