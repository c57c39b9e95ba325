"""Held-out text that a model predicts: bits per byte and perplexity, document by document."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from research.batch import PADDING, Batch
from research.config.schema import Positive
from research.data.config import DataConfig
from research.data.examples import open_texts
from research.data.heldout import HeldOut
from research.data.sources import AnySourceConfig, SourceConfig
from research.data.token_cache import default_cache
from research.evaluation.question_task import LoadedModel, QuestionTask
from research.evaluation.questions import Question
from research.evaluation.results import Answer, Cost, Part, TaskResult
from research.generation.responders import Responder
from research.reports.statistics import Estimate
from research.text.conversation import from_messages
from research.text.tokenizer import Tokenizer
from research.training.cost import ForwardFlops
from research.training.heldout_loss import document_nats

# Behind a source's name: the metric in nats a token, whose exponential is the perplexity.
NATS = "/nats"
# Characters of a document that a result shows.
_CHARACTERS = 200


@dataclasses.dataclass(frozen=True)
class TextTask(QuestionTask):
    """Held-out text of some sources, every token once, end-of-text included.

    Of each source NAME the metric `NAME` is bits per byte, which do not depend on the tokenizer,
    and `NAME/nats` are nats a token; a document counts by its bytes and its tokens. Lower is
    better.
    """

    sources: tuple[AnySourceConfig, ...]
    split: str = "heldout"
    # most tokens of each source, whole documents drawn by a fixed seed; None reads them all
    max_tokens: Positive | None = None
    # tokens of a row, and rows of a batch
    sequence_length: Positive = 256
    batch_size: Positive = 32
    kind: Literal["text"] = "text"

    asks_questions = False
    max_questions = None
    objective = None
    retrieval = None
    group = None  # documents are what varies
    breakdown = ()

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"sources: one at least, each with a name of its own, not {names}")

    @property
    def splits(self) -> list[tuple[SourceConfig, str]]:
        return [(source, self.split) for source in self.sources]

    def measures(self, record: Mapping[str, Any]) -> Iterable[str]:
        return [record["source"], record["source"] + NATS]

    def metric_names(self, questions: Sequence[Question]) -> list[str]:
        return sorted({name for each in questions for name in self.measures(each.record)})

    def check_model(self, responder: Responder, questions: Sequence[Question]) -> None:
        """Any model that says tokens can be asked."""

    def prepare(self, tokenizer: Tokenizer) -> list[Question]:
        """The documents, as many as `max_tokens` has room for."""
        return [
            question
            for source in self.sources
            for question in self._documents(source, self.open(source, tokenizer), tokenizer)
        ]

    def open(self, source: SourceConfig, tokenizer: Tokenizer) -> HeldOut:
        """The part of a source that is scored."""
        config = DataConfig(self.sources, self.sequence_length, self.batch_size)
        cache = default_cache()
        return HeldOut(config, tokenizer, cache, source.name, self.split, self.max_tokens)

    def _documents(
        self, source: SourceConfig, heldout: HeldOut, tokenizer: Tokenizer
    ) -> Iterator[Question]:
        data = open_texts(source, self.split, tokenizer)
        for row in heldout.source_rows.tolist():
            text = data[row]["text"]
            conversation = from_messages([{"role": "user", "content": text}])
            yield Question(row, conversation, {"text": text, "source": source.name})

    def trained_record(self, question: Question) -> Mapping[str, Any]:
        return question.record

    def answer_in_parts(
        self, model: LoadedModel, questions: Sequence[Question], finished: Collection[int]
    ) -> Iterator[Part]:
        tokenizer, start = model.responder.run.tokenizer, 0
        for source in self.sources:
            heldout = self.open(source, tokenizer)
            numbers = range(start, start + heldout.documents)
            start = numbers.stop
            if all(number in finished for number in numbers):
                continue
            with tqdm(total=len(heldout), desc=source.name, disable=None, leave=False) as bar:
                nats = document_nats(model.score, heldout, bar)
            if not np.isfinite(nats).all():
                raise ValueError("the model's likelihoods are not finite: its weights are broken")
            flops = sum(_flops(batch, model.flops) for batch in heldout.batches())
            sizes = zip(
                nats.tolist(),
                heldout.document_tokens.tolist(),
                heldout.document_bytes.tolist(),
                strict=True,
            )
            yield Part(
                {
                    number: _answer(questions[number], *each)
                    for number, each in zip(numbers, sizes, strict=True)
                },
                tokens_read=heldout.tokens,
                cost=Cost(flops, model.weight_bytes),
            )


def bits_per_byte(result: TaskResult) -> dict[str, Estimate]:
    """Source -> bits per byte of its text."""
    return {n: value for n, value in result.metrics.items() if not n.endswith(NATS)}


def perplexity(result: TaskResult, source: str) -> Estimate:
    """The exponential of the nats a token."""
    nats = result.metrics[source + NATS]
    value, low, high = map(math.exp, (nats.value, nats.low, nats.high))
    return Estimate(value, low, high, nats.n)


def _answer(question: Question, nats: float, tokens: int, size: int) -> Answer:
    """A document, which counts by its bytes and its tokens; one that is empty has its end alone."""
    source = question.record["source"]
    scores: dict[str, float] = {}
    sizes: dict[str, int] = {}
    if size:
        scores[source], sizes[source] = nats / math.log(2) / size, size
    if tokens:
        scores[source + NATS], sizes[source + NATS] = nats / tokens, tokens
    return Answer(
        question=question.text[:_CHARACTERS],
        answer="",
        digest=question.digest([source]),
        scores=scores,
        prompt_tokens=tokens,
        sizes=sizes,
    )


def _flops(batch: Batch, of_model: ForwardFlops) -> float:
    """Of reading the documents of a batch."""
    lengths = [
        int(count)
        for row in batch.segments
        for segment, count in zip(*np.unique(row, return_counts=True), strict=True)
        if segment != PADDING
    ]
    return sum(map(of_model.text, lengths)) + of_model.head * int((batch.weights > 0).sum())
