"""Prompt templates: how a question is written, and worked examples in front of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from research.runtime import unique_json

PLACE = "{prompt}"
# Labels that an instruction lists at most.
_MAX_LABELS = 40


@dataclasses.dataclass(frozen=True)
class Shot:
    """A worked example."""

    prompt: str
    completion: str


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """How a question is put to a model: worked examples, an instruction, the question."""

    name: str
    # stands once in a prompt, after the examples; empty: none
    instruction: str = ""
    # how a question is written, with `{prompt}` once, here and in every example
    question: str = PLACE
    # between a question and its answer, where a model reads one text
    delimiter: str = "\n"

    def __post_init__(self) -> None:
        if self.question.count(PLACE) != 1:
            raise ValueError(
                f"template {self.name!r}: `question` must have {PLACE} once, not "
                f"{self.question.count(PLACE)} times: {self.question!r:.100}"
            )

    def example(self, shot: Shot) -> str:
        """An example as a prompt has it."""
        return self.question.replace(PLACE, shot.prompt) + self.delimiter + shot.completion

    def format(self, shots: Sequence[Shot] = ()) -> str:
        """The prompt as a format string over a record's `prompt`, as transforms take it."""
        examples = [self.example(shot) for shot in shots]
        head, tail = self.question.split(PLACE)
        before = "\n\n".join([*examples, *([self.instruction] if self.instruction else []), head])
        return _escape(before) + PLACE + _escape(tail)

    @property
    def passage(self) -> str:
        """An example as retrieval writes it."""
        head, tail = self.question.split(PLACE)
        return f"{_escape(head)}{{text}}{_escape(tail + self.delimiter)}{{completion}}"


def default_templates(own: PromptTemplate, labels: Sequence[str]) -> tuple[PromptTemplate, ...]:
    """The templates that are tried unless others are given; the task's own is the first.

    Args:
      own: as the task itself writes a question.
      labels: all answers that there are, where answers are chosen; empty: they are free.
    """
    asks = dict(question=f"Question: {PLACE}\nAnswer:", delimiter=" ")
    plain = PromptTemplate("question and answer", **asks)
    if not labels or len(labels) > _MAX_LABELS:
        brief = "Answer the question. Say nothing but the answer."
        return own, plain, PromptTemplate("instruction", brief, **asks)
    listed = ", ".join(labels)
    return (
        own,
        plain,
        PromptTemplate("labels first", f"Answer with one of: {listed}.", **asks),
        PromptTemplate(
            "labels last",
            question=f"{PLACE}\n\nWhich of these is it: {listed}? Answer:",
            delimiter=" ",
        ),
    )


def read_templates(path: str | Path) -> tuple[PromptTemplate, ...]:
    """Templates of a JSONL file: `name`, `question` with `{prompt}`, `instruction`, `delimiter`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is no template; names it.
    """
    templates: list[PromptTemplate] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            content = unique_json.parse(line)
            template = PromptTemplate(**content)
            if not all(isinstance(value, str) for value in dataclasses.astuple(template)):
                raise ValueError(f"a value is no text: {json.dumps(content):.100}")
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}:{number}: no template such as "
                f'{{"name": "short", "question": "{PLACE}\\nAnswer:"}}: {error}'
            ) from None
        if template.name in {each.name for each in templates}:
            raise ValueError(f"{path}:{number}: two templates are called {template.name!r}")
        templates.append(template)
    if not templates:
        raise ValueError(f"{path}: there is no template")
    return tuple(templates)


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
