"""Questions of pairs, each answered by the likeliest of the training split's completions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from research.config.schema import Count, Positive
from research.data.sources import AnySourceConfig, SourceConfig, open_source
from research.data.sources.base import RecordsConfig
from research.data.token_cache import text_of
from research.evaluation import scoring
from research.evaluation.calibration import confidence
from research.evaluation.passages import Prompt
from research.evaluation.question_task import LoadedModel, QuestionTask
from research.evaluation.questions import Question
from research.evaluation.results import Answer, Cost, Part
from research.generation.responders import Responder
from research.objectives.supervised import Supervised
from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class ChoiceTask(QuestionTask):
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
    group: str | None = "cluster"
    breakdown: tuple[str, ...] = ()
    kind: Literal["choice"] = "choice"

    retrieval = None

    @functools.cached_property
    def labels(self) -> list[str]:
        """The C answers to choose from."""
        return read_labels(self.source)

    @property
    def splits(self) -> list[tuple[SourceConfig, str]]:
        return [(self.source, "train"), (self.source, self.split)]

    @property
    def key(self) -> Any:
        return open_source(self.source, "train").fingerprint

    def check(self, questions: Sequence[Question]) -> None:
        for question in questions:
            if not isinstance(question.record.get("completion"), str):
                raise ValueError(
                    f"row {question.row}: it has no 'completion' to hold answers against, only "
                    f"{sorted(question.record)}"
                )
        unknown = sorted({each.record["completion"] for each in questions} - set(self.labels))
        if unknown:
            raise ValueError(
                f"{self.source.name}:{self.split}: the training split never answers {unknown[:5]}"
            )

    def right_answers(self, record: Mapping[str, Any]) -> list[str]:
        return [record["completion"]]

    def measures(self, record: Mapping[str, Any]) -> Iterable[str]:
        return ["right"]

    def check_model(self, responder: Responder, questions: Sequence[Question]) -> None:
        self.prompts(responder.run.tokenizer, questions)

    def prompts(self, tokenizer: Tokenizer, questions: Sequence[Question]) -> list[Prompt]:
        """The questions as models of a tokenizer read them, behind the worked examples.

        Raises:
          ValueError: a question that is no text, or has no room; names the row.
        """
        shots = self._shot_ids(tokenizer)
        longest = max(len(ids) for ids in self._label_ids(tokenizer))
        prompts = []
        for question in questions:
            if not question.is_plain:
                raise ValueError(
                    f"row {question.row}: it is a conversation of several messages, and "
                    f'kind="{self.kind}" asks with a text: take kind="multiple_choice"'
                )
            ids, is_cut = self.objective.encode_prompt(
                tokenizer, question.text, self.sequence_length, longest, shots
            )
            prompts.append(Prompt(ids, is_cut))
        return prompts

    def answer_in_parts(
        self, model: LoadedModel, questions: Sequence[Question], finished: Collection[int]
    ) -> Iterator[Part]:
        tokenizer = model.responder.run.tokenizer
        prompts, labels = self.prompts(tokenizer, questions), self.labels
        ids = self._label_ids(tokenizer)
        lengths = [*map(len, ids)]
        batches = scoring.score_in_batches(
            model.score,
            [prompt.ids for prompt in prompts],
            [ids] * len(prompts),
            self.batch_size,
            finished,
            is_one_length=True,  # one program for all that a study asks
        )
        for scores in batches:
            answers = {}
            for number, values in scores.items():
                question, prompt = questions[number], prompts[number]
                best, right = labels[int(np.argmax(values))], question.record["completion"]
                answers[number] = Answer(
                    question=question.text,
                    answer=best,
                    digest=question.digest([right]),
                    scores={"right": float(best == right)},
                    prompt_tokens=len(prompt.ids),
                    confidence=confidence(values),
                    reference=right,
                )
            flops = [model.flops.options(len(prompts[n].ids), lengths) for n in answers]
            yield Part(
                answers,
                truncated=sum(prompts[number].is_cut for number in answers),
                tokens_read=sum(scoring.tokens_of(prompts[n].ids, ids) for n in answers),
                cost=Cost(sum(flops), model.weight_bytes),
            )

    def _label_ids(self, tokenizer: Tokenizer) -> list[list[int]]:
        return [[*tokenizer.encode(label), tokenizer.end_id] for label in self.labels]

    def _shot_ids(self, tokenizer: Tokenizer) -> list[int]:
        """Token ids of the shots: prompt cut to its first tokens, answer, a blank line."""
        train_data = open_source(self.source, "train")
        order = np.random.default_rng(self.seed).permutation(len(train_data))
        head, tail = self.objective.fixed(tokenizer)
        ids: list[int] = []
        used_answers: set[str] = set()
        for index in order:
            if len(used_answers) == self.shots:
                break
            row = train_data[int(index)]
            if row["completion"] in used_answers:  # as many different answers as there are shots
                continue
            used_answers.add(row["completion"])
            prompt = tokenizer.encode(row["prompt"])[: self.shot_tokens]
            ids += [*head, *prompt, *tail, *tokenizer.encode(row["completion"] + "\n\n")]
        return ids


def read_labels(source: SourceConfig) -> list[str]:
    """The answers of the whole training split, of which worked examples may be a sample."""
    if isinstance(source, RecordsConfig):
        source = dataclasses.replace(source, max_records=None, training_transforms=())
    data = open_source(source, "train")
    return sorted({text_of(data, row_number, "completion") for row_number in range(len(data))})
