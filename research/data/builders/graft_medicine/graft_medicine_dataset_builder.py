"""Healthcare: a question of a medical entrance examination, and four answers (MedMCQA).

Questions are those of the evaluation `medmcqa` of the package (Pal 2022, arXiv:2203.14371): 300,
for evaluation only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from research.data.builders.labelled import REST, LabelledBuilder, Record

_QUESTION = re.compile(
    r"\ASubject: (.+?)\n\n(.+)\n\na\) (.+)\nb\) (.+)\nc\) (.+)\nd\) (.+)\Z", re.DOTALL
)


class Builder(LabelledBuilder):
    """Questions of a medical entrance examination, with four options each."""

    VERSION = tfds.core.Version("1.0.0")
    ASSET = "evals"
    MEMBERS = r"evals/registry/data/medmcqa/samples\.jsonl"
    SIZES = {"test": REST}
    FIELDS = {
        "prompt": tfds.features.Text(),
        "choices": tfds.features.Sequence(tfds.features.Text()),
        "completion": tfds.features.Text(),
        "subject": tfds.features.Text(),
    }

    def records(self, name: str, content: bytes) -> Iterator[Record]:
        for number, line in enumerate(content.splitlines(), start=1):
            sample = json.loads(line)
            match = _QUESTION.match(sample["input"][-1]["content"])
            if match is None or sample["ideal"][:2] not in ("a)", "b)", "c)", "d)"):
                raise ValueError(f"{name}:{number}: no question with the options a) to d)")
            subject, prompt, *choices = (part.strip() for part in match.groups())
            if len(set(choices)) < len(choices):
                continue
            fields = {
                "prompt": prompt,
                "choices": choices,
                "completion": choices["abcd".index(sample["ideal"][0])],
                "subject": subject,
            }
            yield Record(f"{prompt}\n{choices}", fields)
