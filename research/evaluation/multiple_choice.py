"""Questions with options of their own, of which a model's likeliest is its answer."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from research.config.schema import Positive
from research.data.sources import AnySourceConfig
from research.evaluation import scoring
from research.evaluation.calibration import confidence
from research.evaluation.question_task import LoadedModel, QuestionTask
from research.evaluation.questions import Question
from research.evaluation.results import Answer, Cost, Part
from research.generation.responders import Responder
from research.objectives import ObjectiveConfig
from research.retrieval import AnyRetrieval
from research.text import chat_template
from research.text.conversation import from_messages

LETTERS = string.ascii_uppercase


@dataclasses.dataclass(frozen=True)
class MultipleChoice(QuestionTask):
    """Questions whose answer is the likeliest of some options.

    Its metrics are shares of right answers, of the likeliest option by: `right`, log-likelihood as
    it is; `right/tokens` and `right/bytes`, a token and a byte of the option (Brown 2020, 2.4);
    `right/unconditional`, what the question adds to it (Holtzman 2021, arXiv:2104.08315), where
    `unconditional` is set.
    """

    source: AnySourceConfig
    # field with a question's options: texts, or {"text": [...], "label": [...]}
    options: str = "choices"
    # the same options for all questions, in place of a field
    labels: tuple[str, ...] = ()
    # field with the right one: its text, its letter or label, or its number from 0
    reference: str = "answer"
    # whether the options are shown below the question, and are answered by their letters, as MMLU
    # asks (Hendrycks 2021); else an option's text is the answer, and no other is seen
    letters: bool = False
    # between question and option, and part of the option's tokens
    delimiter: str = ""
    # whether the end of the answer counts, where an option may begin as another does
    with_end: bool = False
    # what is asked in place of every question for `right/unconditional`, such as "" or "N/A"
    unconditional: str | None = None
    split: str = "test"
    max_questions: Positive | None = None
    objective: ObjectiveConfig | None = None
    sequence_length: Positive = 1024
    # questions that are scored at a time
    batch_size: Positive = 16
    group: str | None = "cluster"
    retrieval: AnyRetrieval | None = None
    kind: Literal["multiple_choice"] = "multiple_choice"

    is_distributed = True

    def __post_init__(self) -> None:
        if self.labels and len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError(f"labels: two different ones at least, not {self.labels}")
        if self.letters and self.unconditional is not None:
            raise ValueError(
                "unconditional asks for options without the question, and with `letters` they "
                "stand below it: set one of the two"
            )

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.reference} if self.labels else {self.reference, self.options})

    def check(self, questions: Sequence[Question]) -> None:
        for question in questions:
            try:
                self.read_options(question.record)
            except ValueError as error:
                raise ValueError(f"row {question.row}: {error}") from None

    def read_options(self, record: Mapping[str, Any]) -> tuple[list[str], int]:
        """The options of a record, and which is right.

        Raises:
          ValueError: fewer than two, two alike, or none that is right.
        """
        value: Any = list(self.labels) or record.get(self.options)
        names: list[str] = []
        if isinstance(value, Mapping):
            names = [str(name) for name in value.get("label", ())]
            value = value.get("text")
        options = list(value) if isinstance(value, list | tuple) else []
        if len(options) < 2 or not all(isinstance(each, str) and each for each in options):
            raise ValueError(
                f"its {self.options!r} are no options (two texts or more), but {value!r:.60}; "
                f"fields: {', '.join(sorted(record))}"
            )
        if len(set(options)) < len(options):
            raise ValueError(f"two of its options are alike: {options!r:.200}")
        if self.letters and len(options) > len(LETTERS):
            raise ValueError(f"it has {len(options)} options, more than there are letters")
        return options, _find_right(record.get(self.reference), options, names, self.reference)

    def right_answers(self, record: Mapping[str, Any]) -> list[str]:
        """The text of the right option."""
        options, right = self.read_options(record)
        return [options[right]]

    def measures(self, record: Mapping[str, Any]) -> Iterable[str]:
        names = ["right"] if self.letters else ["right", "right/tokens", "right/bytes"]
        return names + (["right/unconditional"] if self.unconditional is not None else [])

    def answer_in_parts(
        self, model: LoadedModel, questions: Sequence[Question], finished: Collection[int]
    ) -> Iterator[Part]:
        rights = [self.read_options(question.record) for question in questions]
        variants = [
            self._with_options(question, options) if self.letters else question
            for question, (options, _) in zip(questions, rights, strict=True)
        ]
        prompts = [self.write(model.responder, question) for question in variants]
        ids = [self._option_ids(model.responder, options) for options, _ in rights]
        tokens_read = [
            scoring.tokens_of(*row) for row in zip((p.ids for p in prompts), ids, strict=True)
        ]
        flops = [
            model.flops.options(len(prompt.ids), map(len, options))
            for prompt, options in zip(prompts, ids, strict=True)
        ]
        bare_scores: list[np.ndarray] | None = None
        if self.unconditional is not None:
            bare_scores, bare_length, is_first = self._score_bare(model, questions[0], ids)
            for row in (row for row, first in enumerate(is_first) if first):
                lengths = [*map(len, ids[row])]
                tokens_read[row] += bare_length - 1 + sum(lengths)
                flops[row] += model.flops.options(bare_length, lengths)
        for scores in scoring.score_in_batches(
            model.score, [prompt.ids for prompt in prompts], ids, self.batch_size, finished
        ):
            answers = {}
            for number, values in scores.items():
                options, right = rights[number]
                by_measure = {
                    "right": values,
                    "right/tokens": values / [len(option) for option in ids[number]],
                    "right/bytes": values / [len(option.encode()) for option in options],
                }
                if self.letters:  # of equal length
                    by_measure = {"right": values}
                if bare_scores is not None:
                    by_measure["right/unconditional"] = values - bare_scores[number]
                prompt = prompts[number]
                answers[number] = Answer(
                    question=variants[number].text,
                    answer=options[int(np.argmax(values))],
                    digest=questions[number].digest([options, options[right]]),
                    scores={
                        measure: float(np.argmax(numbers) == right)
                        for measure, numbers in by_measure.items()
                    }
                    | dict(prompt.scores),
                    prompt_tokens=len(prompt.ids),
                    confidence=confidence(values),
                    reference=options[right],
                    passages=prompt.passages,
                )
            yield Part(
                answers,
                truncated=sum(prompts[number].is_cut for number in answers),
                tokens_read=sum(tokens_read[number] for number in answers),
                cost=Cost(sum(flops[number] for number in answers), model.weight_bytes),
            )

    def _with_options(self, question: Question, options: Sequence[str]) -> Question:
        """The question with its options below it, a letter before each."""
        lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
        return _reworded(question, "\n".join([question.text, *lines]))

    def _option_ids(self, responder: Responder, options: Sequence[str]) -> list[list[int]]:
        """Token ids of what stands for each option."""
        tokenizer = responder.run.tokenizer
        end = [_end_id(responder, self.objective)] if self.with_end else []
        texts = LETTERS[: len(options)] if self.letters else options
        return [[*tokenizer.encode(self.delimiter + text), *end] for text in texts]

    def _score_bare(
        self, model: LoadedModel, question: Question, ids: Sequence[Sequence[list[int]]]
    ) -> tuple[list[np.ndarray], int, list[bool]]:
        """Log-likelihoods of all options after no question, each once; the tokens of none; and of
        each question whether it is the first that has its options."""
        assert self.unconditional is not None
        bare = dataclasses.replace(_reworded(question, self.unconditional), passages=None)
        prompt = self.write(model.responder, bare).ids
        keys = [tuple(map(tuple, options)) for options in ids]
        rows: dict[tuple[tuple[int, ...], ...], int] = {}
        for number, key in enumerate(keys):
            rows.setdefault(key, number)
        distinct = [ids[number] for number in rows.values()]
        scores = scoring.score_options(model.score, [prompt] * len(rows), distinct, self.batch_size)
        by_key = dict(zip(rows, scores, strict=True))
        is_first = [rows[key] == number for number, key in enumerate(keys)]
        return [by_key[key] for key in keys], len(prompt), is_first


def _find_right(value: Any, options: Sequence[str], names: Sequence[str], field: str) -> int:
    """Number of the right option: by its text, its label, its letter, or its number from 0."""
    number: int | None = None
    if isinstance(value, str):
        text = value.strip()
        if value in options:
            number = options.index(value)
        elif text in names:
            number = names.index(text)
        elif len(text) == 1 and text.upper() in LETTERS and not names:
            number = LETTERS.index(text.upper())
        elif text.isdecimal() and not names:
            number = int(text)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    if number is None or not 0 <= number < len(options):
        raise ValueError(
            f"its {field!r} is none of its {len(options)} options, by text, letter or number from "
            f"0, but {value!r:.60}"
        )
    return number


def _reworded(question: Question, text: str) -> Question:
    """The question with another last message."""
    source = question.conversation
    messages = [*source.messages[:-1], {**source.messages[-1], "content": text}]
    arguments = (source.tools, source.template_arguments)
    return dataclasses.replace(question, conversation=from_messages(messages, *arguments))


def _end_id(responder: Responder, objective: ObjectiveConfig | None) -> int:
    """The token that ends an answer."""
    tokenizer = responder.run.tokenizer
    objective = objective or responder.objective
    if objective is not None:
        stops = objective.stop_ids(tokenizer)
    else:
        stops = chat_template.find_stops(responder.run.sidecar_files)
    return stops[0] if stops else tokenizer.end_id
