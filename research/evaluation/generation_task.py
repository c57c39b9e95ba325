"""Questions that a model answers in words, and what its answers are worth."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from research.config.schema import Positive
from research.data.sources import AnySourceConfig
from research.evaluation.questions import Question, read_groups, read_questions
from research.evaluation.results import Answer, TaskResult
from research.evaluation.scorers import AnyScorer, Scorer
from research.generation import decode
from research.generation.responders import Responder, find_stops
from research.generation.sampling import Sampling
from research.objectives import ObjectiveConfig


@dataclasses.dataclass(frozen=True)
class GenerationTask:
    """Questions of a labelled split, answered in words and scored.

    A question is written as the model was tuned to read it, in an imported model's chat template,
    or as `objective` says: the same for a base, its prompts and everything tuned from it.
    """

    source: AnySourceConfig
    # what is measured of each answer
    scorers: tuple[AnyScorer, ...]
    split: str = "test"
    # most questions, drawn by a fixed seed; None asks them all
    max_questions: Positive | None = None
    # how questions are written, such as dict(kind="supervised", template=...); None: as the model
    # was tuned
    objective: ObjectiveConfig | None = None
    # tokens that a question may have, where `objective` writes it
    sequence_length: Positive = 1024
    # most tokens of an answer; one that has not ended then is cut, and counted
    max_tokens: Positive = 128
    # answers that are written at a time
    batch_size: Positive = 16
    sampling: Sampling = Sampling()
    # field of records, where they have it: those that share it (near duplicates, questions on one
    # passage) are not independent, and intervals are the wider for it
    group: str | None = "cluster"
    kind: Literal["generation"] = "generation"

    def __post_init__(self) -> None:
        if not self.scorers:
            raise ValueError("a generation task needs `scorers`, such as dict(kind='exact_match')")
        labels = collections.Counter(scorer.label for scorer in self.scorers)
        label, count = labels.most_common(1)[0]
        if count > 1:
            raise ValueError(f"two scorers are called {label!r}: give one of them a `name`")

    @property
    def key(self) -> Any:
        """What its scorers depend on, as JSON."""
        return [scorer.key for scorer in self.scorers]

    @property
    def reads(self) -> frozenset[str]:
        """Fields of records that its scorers read."""
        return frozenset().union(*(scorer.reads for scorer in self.scorers))


def read_task(task: GenerationTask) -> list[Question]:
    """The questions of a task, which every scorer can score.

    Raises:
      ValueError: a record that asks nothing, lacks a reference or a group; names the row.
    """
    reads = task.reads if task.group is None else {*task.reads, task.group}
    questions = read_questions(task.source, task.split, reads, task.max_questions)
    read_groups(questions, task.group)
    _check_references(task.scorers, questions)
    return questions


def answer_in_words(
    model: Any, responder: Responder, task: GenerationTask, questions: list[Question], name: str
) -> TaskResult:
    """Asks a model every question of a task.

    Args:
      model: a loaded `Transformer` with what is attached to it.
      responder: whose template and ends of answers are used.
      questions: as `read_task` gives them.
      name: of the task, on the progress bar.

    Raises:
      ValueError: a template that refuses a question; names the row.
    """
    groups = read_groups(questions, task.group)
    prompts = [_write(responder, task, question) for question in questions]
    start = time.perf_counter()
    texts = _generate(model, responder, task, [ids for ids, _ in prompts], name)
    seconds = time.perf_counter() - start
    answers = []
    for number, (question, (ids, _)) in enumerate(zip(questions, prompts, strict=True)):
        text, new_tokens = texts[number]
        plain_text = without_thoughts(text)
        scores = [scorer.score(plain_text, question.record) for scorer in task.scorers]
        answers.append(
            Answer(
                question=question.text,
                answer=text,
                digest=question.digest,
                scores={metric: value for each in scores for metric, value in each.values.items()},
                group=None if groups is None else str(groups[number]),
                unreadable="; ".join(filter(None, (each.unreadable for each in scores))),
                is_cut=new_tokens == task.max_tokens,
                prompt_tokens=len(ids),
                new_tokens=new_tokens,
            )
        )
    return TaskResult(answers, sum(is_cut for _, is_cut in prompts), seconds)


def without_thoughts(text: str) -> str:
    """What an answer says after its thoughts; nothing where they do not end."""
    _, end, rest = text.rpartition("</think>")
    if end:
        return rest
    return "" if text.lstrip().startswith("<think>") else text


def _check_references(scorers: Sequence[Scorer], questions: Sequence[Question]) -> None:
    """Scores an empty answer to each question, before any is asked."""
    for question in questions:
        for scorer in scorers:
            try:
                scorer.score("", question.record)
            except ValueError as error:
                raise ValueError(f"row {question.row}, {scorer.label}: {error}") from None


def _write(
    responder: Responder, task: GenerationTask, question: Question
) -> tuple[list[int], bool]:
    """Token ids of a question, and whether it was cut."""
    try:
        if task.objective is None:
            return responder.prompt(question.conversation)
        tokenizer = responder.run.tokenizer
        return task.objective.prompt_ids(tokenizer, question.conversation, task.sequence_length)
    except ValueError as error:
        raise ValueError(f"row {question.row}: {error}") from None


def _generate(
    model: Any, responder: Responder, task: GenerationTask, prompts: Sequence[list[int]], name: str
) -> list[tuple[str, int]]:
    """Text and number of tokens of the answer to each prompt."""
    tokenizer = responder.run.tokenizer
    stops = find_stops(responder.run, [responder])
    if task.objective is not None:
        stops += task.objective.stop_ids(tokenizer)
    answers = [("", 0)] * len(prompts)
    bar = tqdm(total=len(prompts), desc=name, unit="question", disable=None, leave=False)
    with bar:
        for rows in _batches(prompts, task.batch_size):
            full = rows + [rows[-1]] * (task.batch_size - len(rows))  # one shape of all batches
            adapters = None
            if responder.number is not None:
                adapters = np.full(len(full), responder.number, np.int32)
            texts = decode.generate(
                model,
                [prompts[row] for row in full],
                task.max_tokens,
                tokenizer.end_id,
                task.sampling,
                adapters,
                stops,
            )
            for row, ids in zip(rows, texts, strict=False):
                answers[row] = (tokenizer.decode(ids), len(ids))
            bar.update(len(rows))
    return answers


def _batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Rows, the longest prompts first: those of a batch are about equally long."""
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    for start in range(0, len(order), size):
        yield order[start : start + size]
