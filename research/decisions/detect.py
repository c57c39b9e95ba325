"""A file of rows without a config: which fields ask and answer, what kind of answers these are, and
what they are scored by. Everything that is found is said."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.config.suggestions import suggestion
from research.data.sources import JsonlConfig
from research.decisions.problem import Reading, with_plain_answers
from research.decisions.row_files import OPTIONS, plain_row, read_splits, unread_fields
from research.decisions.templates import PromptTemplate
from research.evaluation.generation_task import GenerationTask
from research.evaluation.multiple_choice import MultipleChoice
from research.evaluation.question_task import QuestionTask
from research.evaluation.scorers.base import Scorer
from research.evaluation.scorers.exact_match import ExactMatch
from research.evaluation.scorers.json_schema import JsonSchema
from research.evaluation.scorers.numeric import Numeric
from research.evaluation.scorers.rouge_l import RougeL
from research.evaluation.scorers.token_f1 import TokenF1
from research.runtime import unique_json
from research.text.tokenizer import Tokenizer

# Names under which data sets keep what is asked, and what is right, the likeliest first.
QUESTIONS = "prompt question instruction input query text ticket message body content sentence"
ANSWERS = "completion answer output response label target category class intent gold expected"
# Names of what stands beside a question and its answer.
BESIDE = {"split", "id", "index", "cluster", "source", *OPTIONS}
# Answers are labels where each has so many rows on average, and is no longer than that.
_ROWS_OF_A_LABEL = 4
_LABEL_CHARACTERS = 64
# Words of answers up to which they are compared as they are.
_SHORT = 6


@dataclasses.dataclass(frozen=True)
class Fields:
    """Which fields of a record are read; empty: they are looked for."""

    question: str = ""
    answer: str = ""
    # all labels that there are; empty: those of the answers
    labels: tuple[str, ...] = ()


def is_file_of_rows(name: str) -> bool:
    """Whether a task's name is a file of this kind."""
    return name.endswith(".jsonl")


def read_file(path: str, tokenizer: Tokenizer, fields: Fields | None = None) -> Reading:
    """The task that a JSONL file is, and its rows.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is no record, nothing asks or answers, or labels that no answer is.
    """
    fields = fields or Fields()
    splits, notes = read_splits(path)
    raw = [row for split_rows in splits.values() for row in split_rows]
    question, answer = _find_fields(raw, fields)
    result = {
        name: [plain_row(row, question, answer) for row in split_rows]
        for name, split_rows in splits.items()
    }
    rows = [record for records in result.values() for record in records]
    known = [record["completion"] for record in rows if record["completion"] is not None]
    blank = len(rows) - len(known)
    notes.append(f"{len(rows):,} rows; {question!r} asks and {answer!r} answers")
    if unread := unread_fields(raw, question, answer):
        notes.append(f"not read: {_list(unread)}")
    if blank:
        notes.append(f"{blank:,} rows have no answer: they are texts without a label")
    if not known:
        raise ValueError(f"{path}: no row has an answer in {answer!r}")
    if len(known) > 1 and len(set(known)) == 1 and not fields.labels:
        raise ValueError(
            f"{path}: every row has the answer {known[0]!r}: there is nothing to decide"
        )
    options = next((name for name in OPTIONS if all(name in record for record in rows)), None)
    task, kind = _choose_task(path, known, options, fields, tokenizer)
    notes.append(kind)
    plain = PromptTemplate("as it is")
    if not isinstance(task, MultipleChoice):
        return Reading(task, plain, result, tuple(notes))
    return Reading(*with_plain_answers(task, plain, result), tuple(notes))


def _find_fields(records: Sequence[Mapping[str, Any]], fields: Fields) -> tuple[str, str]:
    """The names of the fields that ask and answer; `messages` is both."""
    common = set.intersection(*(set(record) for record in records))
    names = sorted({name for record in records for name in record})
    for name in filter(None, (fields.question, fields.answer)):
        if name not in names:
            raise ValueError(f"no row has a field {name!r}{suggestion(name, names)}")
    if "messages" in common and not (fields.question or fields.answer):
        return "messages", "messages"
    question = fields.question or _first(QUESTIONS, common, fields.answer)
    answer = fields.answer or _first(ANSWERS, set(names), question)
    question = question or _first(QUESTIONS, common, answer)
    if question and question == answer:
        raise ValueError(f"the field {question!r} cannot ask and answer: say two fields")
    if not question or not answer:
        what = "asks" if not question else "answers"
        flag = "--question-field" if not question else "--answer-field"
        raise ValueError(
            f"which field {what} is not known: rows have {', '.join(names)}; say it with {flag}"
        )
    return question, answer


def _first(names: str, among: set[str], other: str) -> str:
    """The first of these names; where there is none, the only one that is left."""
    left = among - BESIDE - {other}
    first = next((name for name in names.split() if name in left), "")
    return first or (min(left) if other and len(left) == 1 else "")


def _choose_task(
    path: str,
    answers: Sequence[str],
    options: str | None,
    fields: Fields,
    tokenizer: Tokenizer,
) -> tuple[QuestionTask, str]:
    """How rows with these answers are asked and scored, and that in a sentence."""
    source = JsonlConfig("rows", path)
    counts = Counter(answers)
    if options is not None:
        return MultipleChoice(source, options=options), f"answers are chosen among its {options!r}"
    if fields.labels:
        strangers = [label for label in fields.labels if label not in counts]
        if strangers:
            raise ValueError(
                f"--choices: no answer is ever {', '.join(map(repr, strangers[:5]))}; answers are "
                f"{', '.join(repr(label) for label, _ in counts.most_common(5))}"
            )
        others = sorted(set(counts) - set(fields.labels))
        if others:
            raise ValueError(f"--choices lacks the answers {', '.join(map(repr, others[:5]))}")
    are_labels = (
        len(counts) * _ROWS_OF_A_LABEL <= len(answers)
        and max(map(len, counts)) <= _LABEL_CHARACTERS
    )
    if fields.labels or are_labels:
        labels = fields.labels or tuple(sorted(counts))
        task = MultipleChoice(source, labels=labels, reference="completion")
        return task, f"answers are {len(labels)} labels, one of which is chosen: {_list(labels)}"
    scorers, kind = _choose_scorers(answers)
    lengths = [len(tokenizer.encode(answer)) for answer in answers]
    tokens = int(np.clip(np.quantile(lengths, 0.99) + 8, 8, 512))
    task_of_words = GenerationTask(source, scorers, max_tokens=tokens)
    return task_of_words, f"answers are {kind}, at most {tokens} tokens"


def _choose_scorers(answers: Sequence[str]) -> tuple[tuple[Scorer, ...], str]:
    contents = [_as_object(answer) for answer in answers]
    if all(content is not None for content in contents):
        schema = _schema_of([content for content in contents if content is not None])
        scorer = JsonSchema(schema=schema, fenced=True)
        return (scorer,), f"JSON with the keys {_list(list(schema['properties']))}"
    if all(_is_number(answer) for answer in answers):
        return (Numeric(),), "numbers"
    words = float(np.median([len(answer.split()) for answer in answers]))
    if words <= _SHORT:
        return (ExactMatch(), TokenF1()), "short texts, compared but for case and spaces"
    return (RougeL(), TokenF1(), ExactMatch()), "long texts, compared by ROUGE-L"


def _as_object(answer: str) -> dict[str, Any] | None:
    try:
        content = unique_json.parse(answer)
    except ValueError:
        return None
    return content if isinstance(content, dict) and content else None


_TYPES: dict[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}


def _schema_of(objects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The schema of some objects: the keys of all, and the types of their values."""
    names = list(dict.fromkeys(name for each in objects for name in each))
    properties = {n: _type_of([each[n] for each in objects if n in each]) for n in names}
    required = [name for name in names if all(name in each for each in objects)]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _type_of(values: Sequence[Any]) -> dict[str, Any]:
    if all(isinstance(value, list) for value in values):
        items = [item for value in values for item in value]
        return {"type": "array", **({"items": _type_of(items)} if items else {})}
    if all(isinstance(value, dict) for value in values):
        return _schema_of(values)
    kinds = sorted({_TYPES.get(type(value), "") for value in values} - {""})
    return {"type": kinds if len(kinds) > 1 else kinds[0]} if kinds else {}


def _is_number(answer: str) -> bool:
    try:
        float(answer.replace(",", ""))
    except ValueError:
        return False
    return True


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
