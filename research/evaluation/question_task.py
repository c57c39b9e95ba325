"""What asks a model questions of a labelled split: the protocol of its kinds."""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from research.batch import Batch
from research.config.schema import to_dict
from research.data.sources import SourceConfig
from research.evaluation.passages import Prompt, add_passages, write_prompt
from research.evaluation.questions import (
    Question,
    question_of,
    read_fields,
    read_groups,
    read_questions,
)
from research.evaluation.results import Part, TaskResult, join_parts
from research.generation.responders import Responder
from research.losses.base import TokenLosses
from research.models.cache import CacheKind
from research.objectives import ObjectiveConfig
from research.retrieval import RetrievalConfig
from research.text.conversation import Conversation, from_messages
from research.text.tokenizer import Tokenizer
from research.training.cost import ForwardFlops, forward_flops
from research.training.heldout_loss import Score

# of a task's config: which questions, and how many at a time
_NO_SETTINGS = ("source", "sources", "split", "max_questions", "group", "breakdown", "batch_size")


def settings_of(task: Any) -> dict[str, Any]:
    """How a task asks and scores, as JSON; not of what, nor how fast."""
    return {name: value for name, value in to_dict(task).items() if name not in _NO_SETTINGS}


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model on all devices, and what asks it."""

    # a `Transformer` with what is attached to it
    model: Any
    score: Score
    # batch -> its losses [B,S], on the devices
    losses: Callable[[Batch], TokenLosses]
    # batch -> what a head says [B,C] at the last trained token of each row, on the host
    outputs: Callable[[Batch], np.ndarray]
    responder: Responder
    # how keys and values of its answers are stored; None: in the compute type
    cache_dtype: CacheKind | None = None

    @functools.cached_property
    def flops(self) -> ForwardFlops:
        """FLOPs of what it reads and writes."""
        return forward_flops(self.model.config, self.model)

    @functools.cached_property
    def weight_bytes(self) -> int:
        """Bytes of all its arrays, each once, on however many devices they lie."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.model))

    def cache_bytes(self, rows: int, tokens: int) -> int:
        """Bytes of the keys and values of so many rows, each of so many tokens."""
        slots = tokens + self.flops.in_front
        cache = jax.eval_shape(
            lambda model: model.empty_cache(rows, slots, self.cache_dtype), self.model
        )
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))


class QuestionTask:
    """Questions of a split; each kind is a frozen dataclass with a `kind: Literal[...]` of its own.

    A question is written as the model was tuned to read it, in an imported model's chat template,
    or as `objective` says: the same for a base, its prompts and everything tuned from it.
    """

    # Its name in the registry and in configs.
    kind: str
    source: SourceConfig
    split: str
    # Most questions, drawn by a fixed seed; None asks them all.
    max_questions: int | None
    # How questions are written, such as dict(kind="supervised", template=...); None: as the model
    # was tuned.
    objective: ObjectiveConfig | None
    # Tokens that a question may have, where `objective` writes it.
    sequence_length: int
    # Questions that are put to the model at a time.
    batch_size: int
    # Field of records, where they have it: those that share it (near duplicates, questions on one
    # passage) are not independent, and intervals are the wider for it.
    group: str | None
    # Fields of records by whose values results are broken down, beside the length of prompts.
    breakdown: tuple[str, ...]
    # What is put into each prompt, such as dict(kind="bm25", ...); None: nothing is retrieved.
    retrieval: RetrievalConfig | None
    # Whether the model writes its answers, token by token.
    is_written = False
    # Whether it is asked of a head for classes or a number, which says no tokens.
    asks_head = False
    # Whether what it asks are questions, and no plain text.
    asks_questions = True

    @property
    def splits(self) -> list[tuple[SourceConfig, str]]:
        """The splits of sources that it reads."""
        return [(self.source, self.split)]

    @property
    def is_shared(self) -> bool:
        """Whether several processes may ask together, each the same: indexes are opened by one."""
        return self.retrieval is None

    @property
    def reads(self) -> frozenset[str]:
        """Fields of records that it reads, beside the question."""
        return frozenset()

    @property
    def layer(self) -> str:
        """The environment on top of .venv that it needs; empty: none."""
        return ""

    @property
    def key(self) -> Any:
        """What its numbers depend on that its config does not say, as JSON."""
        return None

    @property
    def machine_key(self) -> Any:
        """What of this machine its numbers depend on, as JSON."""
        return None

    def check(self, questions: Sequence[Question]) -> None:
        """Raises ValueError, with its row, for a record whose answers could not be scored."""

    def right_answers(self, record: Mapping[str, Any]) -> list[str]:
        """The right answers of a record that was checked, where they are known."""
        return []

    def measures(self, record: Mapping[str, Any]) -> Iterable[str]:
        """Metrics of any answer to a record that was checked."""
        raise NotImplementedError

    def metric_names(self, questions: Sequence[Question]) -> list[str]:
        """Metrics of a result, before a model is asked: as `TaskResult.metrics` has them."""
        counts: collections.Counter[str] = collections.Counter()
        for question in questions:
            retrieval_measures = (
                question.passages.measure(0) if question.passages is not None else ()
            )
            counts.update({*self.measures(question.record), *retrieval_measures})
        return sorted(name for name, count in counts.items() if count > 1)

    def check_model(self, responder: Responder, questions: Sequence[Question]) -> None:
        """Raises ValueError for a model that cannot be asked these questions."""
        for question in questions:
            self.write(responder, question)

    @property
    def settings(self) -> dict[str, Any]:
        """How it asks and scores; see `settings_of`."""
        return settings_of(self)

    def read(self) -> list[Question]:
        """The questions, each of which can be scored.

        Raises:
          ValueError: a record that asks nothing, lacks a right answer or a group; names the row.
        """
        reads = {*self.reads, *self.breakdown, *([] if self.group is None else [self.group])}
        reads |= set() if self.retrieval is None else self.retrieval.reads
        questions = read_questions(
            self.source, self.split, reads, self.max_questions, self.question
        )
        read_groups(questions, self.group)
        read_fields(questions, self.breakdown)
        self.check(questions)
        return questions

    def question(self, record: Mapping[str, Any], row: int, name: str) -> Question:
        """What a record of the source of this name asks.

        Raises:
          ValueError: it asks nothing; names the row.
        """
        return question_of(record, row, name)

    def prepare(self, tokenizer: Tokenizer) -> list[Question]:
        """The questions as models of a tokenizer are asked them.

        Raises:
          ValueError: as `read` and `retrieve` do.
        """
        return self.retrieve(self.read(), tokenizer)

    def trained_record(self, question: Question) -> Mapping[str, Any]:
        """The record that must not be trained on where this is asked."""
        return {"messages": list(question.conversation.messages)}

    def retrieve(self, questions: Sequence[Question], tokenizer: Tokenizer) -> list[Question]:
        """The questions with what is retrieved for each, as they are where nothing is.

        Args:
          questions: as `read` gives them.
          tokenizer: of the model that is asked.

        Raises:
          ValueError: nothing to retrieve, or passages that give the test away; names them.
        """
        return add_passages(self.retrieval, self.right_answers, questions, tokenizer)

    def answer_in_parts(
        self, model: LoadedModel, questions: Sequence[Question], finished: Collection[int]
    ) -> Iterator[Part]:
        """Asks a model the questions, some at a time.

        Which are asked together does not depend on which are finished: the same parts come,
        without those all of whose questions are.

        Args:
          questions: as `retrieve` gives them.
          finished: numbers of questions that have answers.

        Raises:
          ValueError: a template that refuses a question; names the row.
        """
        raise NotImplementedError

    def answer(
        self,
        model: LoadedModel,
        questions: Sequence[Question],
        name: str,
        earlier: Sequence[Part] = (),
        keep: Callable[[Part], None] | None = None,
    ) -> TaskResult:
        """Asks a model every question.

        Args:
          questions: as `retrieve` gives them.
          name: of the task, on the progress bar.
          earlier: what was answered before.
          keep: is given every part as soon as it is finished.

        Raises:
          ValueError: a template that refuses a question; names the row.
        """
        parts = list(earlier)
        finished = {number for part in parts for number in part.answers}
        new_parts = self.answer_in_parts(model, questions, finished)
        bar = tqdm(total=len(questions), desc=name, unit="question", disable=None, leave=False)
        with bar:
            bar.update(len(finished))
            start = time.perf_counter()
            for part in new_parts:
                parts.append(dataclasses.replace(part, seconds=time.perf_counter() - start))
                if keep is not None:
                    keep(parts[-1])
                bar.update(len(part.answers))
                start = time.perf_counter()
        return self.result(questions, parts)

    def result(self, questions: Sequence[Question], parts: Sequence[Part]) -> TaskResult:
        """What the answers to all questions come to."""
        result = join_parts(parts, len(questions))
        fields = read_fields(questions, self.breakdown)
        rows = zip(result.answers, self.groups(questions), fields, strict=True)
        answers = [dataclasses.replace(a, group=group, fields=each) for a, group, each in rows]
        return dataclasses.replace(result, answers=answers, settings=self.settings)

    def groups(self, questions: Sequence[Question]) -> list[str | None]:
        """[N] the group of each question; None where it has none."""
        groups: np.ndarray | None = read_groups(questions, self.group)
        return [None] * len(questions) if groups is None else groups.tolist()

    def write(
        self, responder: Responder, question: Question, turns: Sequence[tuple[str, str]] = ()
    ) -> Prompt:
        """A question as a model reads it, with what was retrieved for it.

        Args:
          turns: what the model has said since, and what it was told then; where it reads the last
            text alone, they stand in it, a line each.
        """
        reads = responder.reads_conversations
        if self.objective is not None:
            reads = self.objective.reads_conversations
        if not (reads or question.is_plain):
            raise ValueError(
                f"row {question.row}: it is a conversation of several messages or with tools, of "
                "which this model or `objective` reads the last text alone: ask with "
                "objective=dict(kind='chat')"
            )

        def write(conversation: Conversation) -> tuple[list[int], bool]:
            conversation = add_turns(conversation, turns, reads)
            if self.objective is None:
                return responder.prompt(conversation)
            tokenizer = responder.run.tokenizer
            return self.objective.prompt_ids(tokenizer, conversation, self.sequence_length)

        try:
            return write_prompt(question, write)
        except ValueError as error:
            raise ValueError(f"row {question.row}: {error}") from None


def add_turns(
    conversation: Conversation, turns: Sequence[tuple[str, str]], reads: bool
) -> Conversation:
    """A conversation that goes on from its last message.

    Args:
      turns: an answer and a reply to it, each.
      reads: whether it is read as messages; otherwise it is one text, which gets longer.
    """
    if not turns:
        return conversation
    if reads:
        more = [
            message
            for answer, reply in turns
            for message in (
                {"role": "assistant", "content": answer},
                {"role": "user", "content": reply},
            )
        ]
        messages = [*conversation.messages, *more]
    else:
        lines = [line for turn in turns for line in turn]
        text = "\n".join([str(conversation.messages[-1]["content"]), *lines]) + "\n"
        messages = [{"role": "user", "content": text}]
    return from_messages(messages, conversation.tools, conversation.template_arguments)
