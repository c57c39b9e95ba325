"""What is decided about: a task's rows on disk, how they are asked, and the metric that counts.

Every way answers the same rows: prompts that are too long are cut here, once, and not by the
window of the model that happens to be asked.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.config.suggestions import suggestion
from research.data.sources import JsonlConfig, SourceConfig, TfdsConfig, open_source
from research.data.sources.base import FilesConfig
from research.data.sources.transforms import Template
from research.decisions.metrics import choose_metric
from research.decisions.rows import VALIDATION, Record, Rows, Sizes, split_rows, write_rows
from research.decisions.templates import PLACE, PromptTemplate, Shot
from research.evaluation.choice_task import ChoiceTask
from research.evaluation.multiple_choice import LETTERS, MultipleChoice
from research.evaluation.question_task import QuestionTask
from research.evaluation.questions import read_questions
from research.evaluation.tasks import Evaluation
from research.objectives import Supervised
from research.runtime import files
from research.text.tokenizer import Tokenizer

# The field of a row's letters, where its options are asked by them.
_LETTERS = "letters"


@dataclasses.dataclass(frozen=True)
class Problem:
    """Rows of a task, and how they are asked."""

    name: str
    # of SPLIT.jsonl
    folder: Path
    # as it is configured, but for its source
    task: QuestionTask
    metric: str
    # as the task itself writes a question
    template: PromptTemplate
    # the splits of the validation rows, in the order in which they are asked
    screens: tuple[str, ...]
    rows: Rows
    # of the training rows, with short prompts, in the order of the file
    examples: tuple[Shot, ...]
    # all answers that there are; empty: answers are free, or every question has its own options
    labels: tuple[str, ...] = ()

    @property
    def is_chosen(self) -> bool:
        """Whether an answer is one of some options."""
        return isinstance(self.task, MultipleChoice)

    def source(self, prompt: str = PLACE) -> JsonlConfig:
        """The rows as a source.

        Args:
          prompt: a format string over a row's `prompt`, which a question is written as.
        """
        transforms = () if prompt == PLACE else (Template(fields={"prompt": prompt}),)
        return JsonlConfig(
            self.name,
            str(self.folder / "{split}.jsonl"),
            format="prompt+completion",
            unused_fields=(".*",),
            transforms=transforms,
        )

    def example_source(self) -> JsonlConfig:
        """The training rows with short prompts, to be retrieved."""
        return JsonlConfig(
            f"{self.name}_examples",
            str(self.folder / "examples.jsonl"),
            format="prompt+completion",
            unused_fields=(".*",),
        )

    def task_of(self, split: str, prompt: str = PLACE, **settings: Any) -> QuestionTask:
        """The task on a split of the rows.

        Args:
          prompt: as of `source`.
          settings: fields of the task.
        """
        rows = self.rows.test if split == "test" else self.rows.validation
        groups = {record["cluster"] for record in rows}
        changes: dict[str, Any] = {
            "source": self.source(prompt),
            "split": split,
            "max_questions": None,
            "group": "cluster" if len(groups) < len(rows) else None,
            "breakdown": (),
            "objective": None,
            "retrieval": None,
        }
        return dataclasses.replace(self.task, **changes | settings)  # type: ignore[type-var]

    def records(self, split: str) -> tuple[Record, ...]:
        """The rows of a screen, or of `train`, `validation` or `test`."""
        if split in self.screens:
            return self.rows.screens()[self.screens.index(split)]
        whole = {"train": self.rows.train, VALIDATION: self.rows.validation}
        return {**whole, "test": self.rows.test}[split]


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a config or a file says before its rows are put on their sides."""

    task: QuestionTask
    # as the task itself writes a question
    template: PromptTemplate
    # `train`, `validation`, `test`: those that there are
    splits: Mapping[str, Sequence[Record]]
    # what was found, a sentence each
    notes: tuple[str, ...] = ()
    # whether rows have right answers; else a program alone scores what is said
    has_answers: bool = True


def read_task(evaluation: Evaluation, part: str | None = None) -> Reading:
    """A task of a config.

    Args:
      part: which of several tasks; None: the only one.

    Raises:
      ValueError: no such task, or rows that nothing can be decided by; says which.
    """
    task, template = _choose_task(evaluation, part)
    splits = _read_splits(task)
    task, template, splits = with_plain_answers(task, template, splits)
    has_answers = any(r["completion"] for records in splits.values() for r in records)
    return Reading(task, template, splits, has_answers=has_answers)


def open_problem(
    name: str,
    reading: Reading,
    folder: Path,
    tokenizer: Tokenizer,
    *,
    metric: str | None = None,
    sizes: Sizes | None = None,
    prompt_tokens: int = 512,
    example_tokens: int = 96,
) -> Problem:
    """Puts rows on their sides and writes them into a folder.

    Args:
      name: what it is called.
      reading: the task and its rows.
      folder: of the rows.
      tokenizer: whose tokens prompts are measured in.
      metric: which decides; None: the first by `metrics`.
      prompt_tokens: to which prompts are cut; `example_tokens`: those of worked examples.

    Raises:
      ValueError: rows that nothing can be decided by.
    """
    task = reading.task
    rows = split_rows(reading.splits, sizes or Sizes(), reading.has_answers)
    rows, cut = _cut_rows(rows, tokenizer, prompt_tokens)
    notes = [*reading.notes, *rows.notes]
    if cut:
        notes.append(f"{cut:,} questions are cut to their first {prompt_tokens:,} tokens")
    rows = dataclasses.replace(rows, notes=tuple(notes))
    screens = write_rows(folder, rows)
    examples = tuple(
        Shot(_cut(record["prompt"], tokenizer, example_tokens)[0], record["completion"])
        for record in rows.train
    )
    write_examples(folder, examples)
    problem = Problem(
        name=name,
        folder=folder,
        task=task,
        metric="",
        template=reading.template,
        screens=screens,
        rows=rows,
        examples=examples,
        labels=task.labels if isinstance(task, MultipleChoice) else (),
    )
    asked_task = problem.task_of(screens[0])
    names = asked_task.metric_names(asked_task.read())
    problem = dataclasses.replace(problem, metric=choose_metric(names, metric))
    _check_metric(problem)
    return problem


def _check_metric(problem: Problem) -> None:
    """Refuses a metric that some rows do not have: they would count as wrong in every way.

    Raises:
      ValueError: saying how many.
    """
    for split in (VALIDATION, *(["test"] if problem.rows.test else [])):
        task = problem.task_of(split)
        records = [question.record for question in task.read()]
        count = sum(problem.metric not in {*task.measures(record)} for record in records)
        if count:
            raise ValueError(
                f"--metric {problem.metric}: {count} of {len(records)} rows of {split} do not have "
                "it, and would count as wrong whatever answers them: choose one that all have"
            )


def write_examples(folder: Path, examples: Sequence[Shot]) -> None:
    """Writes `examples.jsonl`, in which labelled examples are searched."""
    lines = [json.dumps(dataclasses.asdict(e) | {"cluster": n}) for n, e in enumerate(examples)]
    files.write_if_other(folder / "examples.jsonl", "".join(f"{line}\n" for line in lines))


def _choose_task(evaluation: Evaluation, part: str | None) -> tuple[QuestionTask, PromptTemplate]:
    """The task that is decided about, and how it writes a question."""
    tasks = {name: task for name, task in evaluation.all_tasks.items() if task.asks_questions}
    if not tasks:
        raise ValueError("the config asks no questions: it has neither `tasks` nor `choice`")
    if part is None and len(tasks) > 1:
        raise ValueError(f"the config has several tasks: say which, --part {' or '.join(tasks)}")
    name = part or next(iter(tasks))
    if name not in tasks:
        raise ValueError(
            f"--part {name}: the config has {', '.join(tasks)}{suggestion(name, tasks)}"
        )
    task = tasks[name]
    objective = task.objective
    if isinstance(task, ChoiceTask):
        task = MultipleChoice(
            task.source,
            labels=tuple(task.labels),
            reference="completion",
            split=task.split,
            batch_size=task.batch_size,
        )
    if task.retrieval is not None:
        raise ValueError(
            f"{name} retrieves already: give its task without `retrieval`, which is one of the ways"
        )
    return task, _own_template(objective)


def _own_template(objective: Any) -> PromptTemplate:
    if not isinstance(objective, Supervised):
        return PromptTemplate("as it is")
    text = objective.template
    question = text.rstrip(" \n") if text.rstrip(" \n").count(PLACE) else text
    return PromptTemplate("its own", question=question, delimiter=text[len(question) :])


def _read_splits(task: QuestionTask) -> dict[str, list[Record]]:
    """The records of every split that the task's source has; its own split is the test."""
    source: SourceConfig = task.source
    if isinstance(source, FilesConfig) and "{split}" not in source.path:
        return {"train": _read_records(task, source.split)}
    splits = {"train": source.split, "validation": "validation", "test": task.split}
    return {
        name: _read_records(task, split)
        for name, split in splits.items()
        if name == "test" or _has_split(source, split)  # the test is what the task asks
    }


def _has_split(source: SourceConfig, split: str) -> bool:
    try:
        open_source(source, split)
    except FileNotFoundError:
        return False
    except ValueError:
        if not isinstance(source, TfdsConfig):
            raise
        return False
    return True


def _read_records(task: QuestionTask, split: str) -> list[Record]:
    group = [] if task.group is None else [task.group]
    records: list[Record] = []
    for question in read_questions(task.source, split, {*task.reads, *group}):
        if not question.is_plain:
            raise ValueError(
                f"{split}, row {question.row}: it is a conversation of several messages or with "
                "tools; graft decide asks questions of one text: keep the last with a transform"
            )
        record = {k: v for k, v in question.record.items() if k != "messages"}
        answer = record.get("completion")
        records.append({**record, "prompt": question.text, "completion": answer})
    return records


def with_plain_answers(
    task: QuestionTask, template: PromptTemplate, splits: Mapping[str, Sequence[Record]]
) -> tuple[QuestionTask, PromptTemplate, dict[str, list[Record]]]:
    """Rows whose completion is what a model has to say, and the task that reads it there."""
    if not isinstance(task, MultipleChoice):
        return task, template, {name: list(records) for name, records in splits.items()}
    result = {}
    for name, records in splits.items():
        result[name] = [_with_plain_answer(task, record) for record in records]
    if task.letters:
        task = dataclasses.replace(task, letters=False, options=_LETTERS, labels=())
    begins = any(a != b and b.startswith(a) for a in task.labels for b in task.labels)
    task = dataclasses.replace(
        task,
        reference="completion",
        reference_kind="text",
        with_end=task.with_end or begins,
        unconditional=None,
    )
    return task, template, result


def _with_plain_answer(task: MultipleChoice, record: Record) -> Record:
    if record.get(task.reference) is None:
        return {**record, "completion": None}
    options, right = task.read_options(record)
    if not task.letters:
        return {**record, "completion": options[right]}
    letters = LETTERS[: len(options)]
    lines = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]
    return {
        **record,
        "prompt": "\n".join([record["prompt"], *lines]),
        "completion": letters[right],
        _LETTERS: list(letters),
    }


def _cut_rows(rows: Rows, tokenizer: Tokenizer, tokens: int) -> tuple[Rows, int]:
    count, sides = 0, dict[str, Any]()
    for name in ("train", "validation", "test"):
        records = []
        for record in getattr(rows, name):
            prompt, is_cut = _cut(record["prompt"], tokenizer, tokens)
            count += is_cut
            records.append({**record, "prompt": prompt, "question": prompt})
        sides[name] = tuple(records)
    return dataclasses.replace(rows, **sides), count


def _cut(text: str, tokenizer: Tokenizer, tokens: int) -> tuple[str, bool]:
    """The text's first tokens, and whether that is not all of it."""
    ids = tokenizer.encode(text)
    if len(ids) <= tokens:
        return text, False
    return tokenizer.decode(ids[:tokens]).rstrip("\ufffd"), True
