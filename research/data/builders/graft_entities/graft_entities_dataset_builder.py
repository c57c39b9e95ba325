"""Finance: a sentence of a loan agreement, and its people, organizations and places as JSON.

Sentences and entities are those of the evaluation `ner_finance` of the package. The answer is JSON
with three lists of names in the order of the sentence, each name once: a house's format. Sentences
under 40 characters, mostly headings, are left out. Near duplicates share a split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from research.data.builders.labelled import REST, LabelledBuilder, Record

NO_ENTITIES = "No entities found"
TYPES = {"PERSON": "people", "ORGANIZATION": "organizations", "LOCATION": "places"}
MIN_CHARACTERS = 40
_ENTITY = re.compile(rf"(.+?) - ({'|'.join(TYPES)})(?:, |\Z)", re.DOTALL)


def parse(answer: str) -> dict[str, list[str]]:
    """`[Bank - ORGANIZATION, ...]` as lists of names by type.

    Raises:
      ValueError: it is no such list.
    """
    entities: dict[str, list[str]] = {name: [] for name in TYPES.values()}
    if answer == NO_ENTITIES:
        return entities
    body = answer.removeprefix("[").removesuffix("]")
    matches = list(_ENTITY.finditer(body))
    if "".join(match.group() for match in matches) != body or not matches:
        raise ValueError(f"{answer!r:.80} is no list of entities")
    for match in matches:
        names = entities[TYPES[match[2]]]
        if match[1] not in names:
            names.append(match[1])
    return entities


class Builder(LabelledBuilder):
    """Sentences of loan agreements and their named entities as JSON."""

    VERSION = tfds.core.Version("1.0.0")
    ASSET = "evals"
    MEMBERS = r"evals/registry/data/ner_finance/samples\.jsonl"
    SIZES = {"train": REST, "validation": 100, "test": 250}
    FIELDS = {"prompt": tfds.features.Text(), "completion": tfds.features.Text()}

    def records(self, name: str, content: bytes) -> Iterator[Record]:
        for number, line in enumerate(content.splitlines(), start=1):
            sample = json.loads(line)
            sentence = sample["input"][-1]["content"].strip()
            try:
                entities = parse(sample["ideal"])
            except ValueError as error:
                raise ValueError(f"{name}:{number}: {error}") from None
            if len(sentence) >= MIN_CHARACTERS:
                answer = json.dumps(entities, ensure_ascii=False)
                yield Record(sentence, {"prompt": sentence, "completion": answer})
