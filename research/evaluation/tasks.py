"""Tasks of an evaluation: held-out text to predict, and questions with answers to choose from."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from research.batch import PADDING, Batch
from research.config.schema import Count, Name, Positive, by_kind, one_of
from research.data.config import DataConfig
from research.data.heldout import HeldOut
from research.data.sources import AnySourceConfig, SourceConfig, open_source
from research.data.sources.base import RecordsConfig
from research.data.token_cache import default_cache, text_of
from research.evaluation import scoring
from research.evaluation.calibration import confidence
from research.evaluation.generation_task import GenerationTask
from research.evaluation.head_tasks import ClassificationTask, RegressionTask
from research.evaluation.multiple_choice import MultipleChoice
from research.evaluation.question_task import QuestionTask, settings_of
from research.evaluation.questions import digest, draw_rows
from research.evaluation.results import Answer, Cost, TaskResult
from research.models.cache import CacheKind
from research.objectives.supervised import Supervised
from research.sharding import MeshConfig
from research.text.tokenizer import Tokenizer
from research.training.cost import ForwardFlops
from research.training.heldout_loss import Score, bits_per_byte, row_nats

TASKS: dict[str, type[QuestionTask]] = by_kind(
    GenerationTask, MultipleChoice, ClassificationTask, RegressionTask
)
# One of them, told apart by its `kind`.
AnyTask: Any = one_of(TASKS.values())


@dataclasses.dataclass(frozen=True)
class TextTask:
    """Bits per byte of held-out text, source by source."""

    sources: tuple[AnySourceConfig, ...]
    split: str = "heldout"
    # most tokens of each source, whole documents drawn by a fixed seed; None reads them all
    max_tokens: Positive | None = None
    # tokens of a row, and rows of a batch
    sequence_length: Positive = 256
    batch_size: Positive = 32


@dataclasses.dataclass(frozen=True)
class ChoiceTask:
    """Questions with one right answer among the labels of the training split.

    The answer is the label with the highest likelihood after the question, end-of-text included:
    the same question in the same template for every model, tuned or not.
    """

    source: AnySourceConfig
    objective: Supervised
    split: str = "test"
    # most questions, drawn by a fixed seed; None asks them all
    max_questions: Positive | None = None
    # how many worked examples stand in front of each question; they come from the training split
    shots: Count = 0
    # tokens to which a worked example's prompt is cut
    shot_tokens: Positive = 32
    # which worked examples are drawn
    seed: int = 0
    # tokens that a question may have, worked examples and answer included
    sequence_length: Positive = 256
    batch_size: Positive = 16


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Config of `graft evaluate`: the tasks, and the mesh of the model."""

    text: TextTask | None = None
    choice: ChoiceTask | None = None
    # questions that are answered in words or by one of their options, by name
    tasks: Mapping[Name, AnyTask] = dataclasses.field(default_factory=dict)
    # how devices are arranged: each holds the whole model unless mesh.fsdp or mesh.tensor shares it
    mesh: MeshConfig = MeshConfig()
    # how keys and values of written answers are stored; None: in the type that is computed in
    cache_dtype: CacheKind | None = None


@dataclasses.dataclass(frozen=True)
class Answers:
    """Results of a choice task; N questions."""

    labels: list[str]  # the C answers to choose from
    expected: list[str]  # [N]
    predictions: list[str]  # [N]
    prompts: list[str]  # [N]
    scores: np.ndarray  # [N,C] nats
    groups: np.ndarray | None  # [N] near-duplicate clusters, where the source says them
    truncated: int  # questions that were cut to the window
    tokens: int
    seconds: float  # wall clock of all scoring, compilation included
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # see `TaskResult`
    cost: Cost = Cost()
    prompt_tokens: Sequence[int] = ()  # [N]

    @property
    def correct(self) -> np.ndarray:
        return np.asarray(self.expected) == np.asarray(self.predictions)

    @property
    def result(self) -> TaskResult:
        """The same as the result of any task; its metric is `right`."""
        rows = zip(self.prompts, self.expected, self.predictions, strict=True)
        answers = [
            Answer(
                question=prompt,
                answer=prediction,
                digest=digest([prompt, expected]),
                scores={"right": float(expected == prediction)},
                group=None if self.groups is None else str(self.groups[number]),
                prompt_tokens=self.prompt_tokens[number] if self.prompt_tokens else 0,
                confidence=confidence(self.scores[number]),
                reference=expected,
            )
            for number, (prompt, expected, prediction) in enumerate(rows)
        ]
        counts = (self.truncated, self.seconds, self.tokens)
        return TaskResult(answers, *counts, self.settings, self.cost)


@dataclasses.dataclass(frozen=True)
class TextScores:
    """Negative log-likelihoods of one source's held-out text."""

    nats: np.ndarray  # [rows] the same rows for every model with this tokenizer
    bytes: int
    tokens: int
    seconds: float = 0.0  # wall clock, compilation included
    flops: float = 0.0  # see `Cost`

    @property
    def bits_per_byte(self) -> float:
        return bits_per_byte(float(self.nats.sum()), self.bytes)


def open_text(task: TextTask, source: SourceConfig, tokenizer: Tokenizer) -> HeldOut:
    """The part of a source that the task scores."""
    config = DataConfig(task.sources, task.sequence_length, task.batch_size)
    cache = default_cache()
    return HeldOut(config, tokenizer, cache, source.name, task.split, task.max_tokens)


def heldout_texts(task: TextTask, source: SourceConfig, tokenizer: Tokenizer) -> list[str]:
    """The documents that `score_text` scores, as text."""
    split_data = open_source(source, task.split)
    return [split_data[int(i)]["text"] for i in open_text(task, source, tokenizer).source_rows]


def score_text(
    score: Score, task: TextTask, tokenizer: Tokenizer, of_model: ForwardFlops | None = None
) -> dict[str, TextScores]:
    """Scores the held-out text of every source: source name -> scores.

    Args:
      of_model: counts FLOPs; None: they are not counted.
    """
    results = {}
    for source in tqdm(task.sources, "held-out text", unit="source", disable=None, leave=False):
        start, flops = time.perf_counter(), 0.0
        heldout = open_text(task, source, tokenizer)
        nats = row_nats(score, heldout.batches())
        seconds = time.perf_counter() - start
        if of_model is not None:
            flops = sum(_flops(batch, of_model) for batch in heldout.batches())
        results[source.name] = TextScores(nats, heldout.bytes, heldout.tokens, seconds, flops)
    return results


def _flops(batch: Batch, of_model: ForwardFlops) -> float:
    """Of reading the documents of a batch."""
    lengths = [
        int(count)
        for row in batch.segments
        for segment, count in zip(*np.unique(row, return_counts=True), strict=True)
        if segment != PADDING
    ]
    return sum(map(of_model.text, lengths)) + of_model.head * int((batch.weights > 0).sum())


@dataclasses.dataclass(frozen=True)
class ChoiceQuestions:
    """The questions of a choice task, read, checked and as a model reads them."""

    task: ChoiceTask
    name: str  # of the split
    labels: list[str]  # the C answers to choose from
    answers: list[list[int]]  # their tokens
    row_numbers: list[int]  # [N] of the split
    rows: Sequence[Mapping[str, Any]]  # [N] records
    prompts: list[list[int]]  # [N] tokens
    groups: np.ndarray | None  # as of `Answers`
    truncated: int

    def flops(self, of_model: ForwardFlops) -> float:
        """Of reading every question once, and all answers after each."""
        lengths = [*map(len, self.answers)]
        return sum(of_model.options(len(prompt), lengths) for prompt in self.prompts)


def read_choice(task: ChoiceTask, tokenizer: Tokenizer) -> ChoiceQuestions:
    """The questions of a choice task.

    Raises:
      ValueError: no question, or an expected answer that the training split never has.
    """
    train_data, split_data = open_source(task.source, "train"), open_source(task.source, task.split)
    labels = read_labels(task.source)
    if not len(split_data):
        raise ValueError(f"{split_data.name} has 0 questions: there is nothing to ask")
    row_numbers = question_rows(task, len(split_data))
    for row_number in row_numbers:
        text_of(split_data, row_number, "prompt"), text_of(split_data, row_number, "completion")
    rows = [split_data[row_number] for row_number in row_numbers]
    unknown = sorted({row["completion"] for row in rows} - set(labels))
    if unknown:
        raise ValueError(f"{split_data.name}: the training split never answers {unknown[:5]}")
    groups = _groups(rows, split_data.name)
    answers = [[*tokenizer.encode(label), tokenizer.end_id] for label in labels]
    longest = max(map(len, answers))
    shot_ids = worked_example_ids(train_data, task, tokenizer)
    prompts, truncated_count = [], 0
    for row in rows:
        ids, is_truncated = task.objective.encode_prompt(
            tokenizer, row["prompt"], task.sequence_length, longest, shot_ids
        )
        prompts.append(ids)
        truncated_count += is_truncated
    return ChoiceQuestions(
        task=task,
        name=split_data.name,
        labels=labels,
        answers=answers,
        row_numbers=row_numbers,
        rows=rows,
        prompts=prompts,
        groups=groups,
        truncated=truncated_count,
    )


def answer_questions(score: Score, task: ChoiceTask, tokenizer: Tokenizer) -> Answers:
    """Answers every question of the task's split by the likeliest label.

    Raises:
      ValueError: as `read_choice` does.
    """
    return answer_choice(score, read_choice(task, tokenizer))


def answer_choice(score: Score, questions: ChoiceQuestions) -> Answers:
    """Answers questions that were read by the likeliest label."""
    task, labels, rows = questions.task, questions.labels, questions.rows

    def with_progress(steps: Iterable[int]) -> Iterable[int]:
        title = f"{questions.name}, {task.shots} shots"
        return tqdm(steps, title, unit="batch", disable=None, leave=False)

    start = time.perf_counter()
    choice = scoring.choose(
        score, questions.prompts, questions.answers, task.batch_size, with_progress
    )
    return Answers(
        labels=labels,
        expected=[row["completion"] for row in rows],
        predictions=[labels[best] for best in choice.best],
        prompts=[row["prompt"] for row in rows],
        scores=choice.scores,
        groups=questions.groups,
        truncated=questions.truncated,
        tokens=choice.tokens,
        seconds=time.perf_counter() - start,
        settings=settings_of(task) | {"kind": "choice"},
        prompt_tokens=[*map(len, questions.prompts)],
    )


def read_labels(source: SourceConfig) -> list[str]:
    """The answers of the whole training split, of which worked examples may be a sample."""
    if isinstance(source, RecordsConfig):
        source = dataclasses.replace(source, max_records=None, training_transforms=())
    data = open_source(source, "train")
    return sorted({text_of(data, row_number, "completion") for row_number in range(len(data))})


def _groups(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray | None:
    """[N] the near-duplicate cluster of each row; None where none has one.

    Raises:
      ValueError: only some have one.
    """
    having = ["cluster" in row for row in rows]
    if any(having) and not all(having):
        raise ValueError(
            f"{name}: {having.count(False)} of {len(rows)} questions have no 'cluster', by which "
            "the others are grouped"
        )
    return np.asarray([row["cluster"] for row in rows]) if all(having) else None


def question_rows(task: ChoiceTask, rows: int) -> list[int]:
    """Rows of the split that are asked, in their order."""
    return draw_rows(rows, task.max_questions)


def worked_example_ids(train_data: Any, task: ChoiceTask, tokenizer: Tokenizer) -> list[int]:
    """Token ids of the shots: prompt cut to its first tokens, answer, a blank line."""
    order = np.random.default_rng(task.seed).permutation(len(train_data))
    head, tail = task.objective.fixed(tokenizer)
    ids: list[int] = []
    used_answers: set[str] = set()
    for index in order:
        if len(used_answers) == task.shots:
            break
        row = train_data[int(index)]
        if row["completion"] in used_answers:  # as many different answers as there are shots
            continue
        used_answers.add(row["completion"])
        prompt = tokenizer.encode(row["prompt"])[: task.shot_tokens]
        ids += [*head, *prompt, *tail, *tokenizer.encode(row["completion"] + "\n\n")]
    return ids
