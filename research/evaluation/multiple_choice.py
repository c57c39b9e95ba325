"""Questions with options of their own, of which a model's likeliest is its answer."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from research.config.schema import Positive
from research.data.sources import AnySourceConfig
from research.data.sources.formats.base import check_text
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
    # which of them it is; None: the only one that fits, as "B" may be a letter and a text
    reference_kind: Literal["text", "label", "letter", "number"] | None = None
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
    breakdown: tuple[str, ...] = ()
    retrieval: AnyRetrieval | None = None
    kind: Literal["multiple_choice"] = "multiple_choice"

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
            names = _read_labels(value)
            value = value.get("text")
        options = list(value) if isinstance(value, list | tuple) else []
        if len(options) < 2 or not all(isinstance(each, str) and each for each in options):
            raise ValueError(
                f"its {self.options!r} are no options (two texts or more), but {value!r:.60}; "
                f"fields: {', '.join(sorted(record))}"
            )
        for option in options:
            check_text(option, f"its {self.options!r}, {option!r:.60},")
        if len(set(options)) < len(options):
            raise ValueError(f"two of its options are alike: {options!r:.200}")
        if self.letters and len(options) > len(LETTERS):
            raise ValueError(f"it has {len(options)} options, more than there are letters")
        if names and len(names) != len(options):
            raise ValueError(
                f"it has {len(options)} options and {len(names)} labels: {names!r:.60}"
            )
        return options, self._find_right(record.get(self.reference), options, names)

    def _find_right(self, value: Any, options: Sequence[str], names: Sequence[str]) -> int:
        """Number of the right option: by its text, its label, its letter, or its number from 0."""
        readings = _read_right(value, options, names)
        if self.reference_kind is not None:
            readings = {kind: n for kind, n in readings.items() if kind == self.reference_kind}
        numbers = {number for number in readings.values() if 0 <= number < len(options)}
        if not numbers:
            kinds: str = self.reference_kind or "text, label, letter or number from 0"
            if self.reference_kind == "label" and not names:
                kinds = "label, of which they have none (text?)"
            raise ValueError(
                f"its {self.reference!r} is none of its {len(options)} options, by {kinds}, but "
                f"{value!r:.60}"
            )
        if len(numbers) > 1:
            meanings = " and ".join(f"by {kind} {options[n]!r:.40}" for kind, n in readings.items())
            raise ValueError(
                f"its {self.reference!r}, {value!r:.40}, is {meanings}: say which is meant with "
                f"reference_kind={next(iter(readings))!r} or another"
            )
        return numbers.pop()

    def right_answers(self, record: Mapping[str, Any]) -> list[str]:
        """The text of the right option."""
        options, right = self.read_options(record)
        return [options[right]]

    def measures(self, record: Mapping[str, Any]) -> Iterable[str]:
        names = ["right"] if self.letters else ["right", "right/tokens", "right/bytes"]
        return names + (["right/unconditional"] if self.unconditional is not None else [])

    def check_model(self, responder: Responder, questions: Sequence[Question]) -> None:
        super().check_model(responder, questions)
        options = [self.read_options(question.record)[0] for question in questions]
        self._check_lengths(questions, [self._option_ids(responder, each) for each in options])

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
        self._check_lengths(questions, ids)
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
                    places=[int(np.argmax(values)), right],
                    passages=prompt.passages,
                )
            yield Part(
                answers,
                truncated=sum(prompts[number].is_cut for number in answers),
                tokens_read=sum(tokens_read[number] for number in answers),
                cost=Cost(sum(flops[number] for number in answers), model.weight_bytes),
            )

    def _check_lengths(
        self, questions: Sequence[Question], ids: Sequence[Sequence[Sequence[int]]]
    ) -> None:
        """Raises ValueError for an option that is longer than a row: it cannot be cut."""
        for question, options in zip(questions, ids, strict=True):
            longest = max(map(len, options))
            if longest > self.sequence_length:
                raise ValueError(
                    f"row {question.row}: an option of {longest:,} tokens, and a row has "
                    f"{self.sequence_length:,} (`sequence_length`)"
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


def _read_labels(value: Mapping[str, Any]) -> list[str]:
    """The labels of options, such as "A" or 1; none where they have none.

    Raises:
      ValueError: something else, or two alike.
    """
    labels = value.get("label")
    if labels is None:
        return []
    is_list = isinstance(labels, list | tuple)
    if not is_list or not all(isinstance(each, str | int) for each in labels):
        raise ValueError(f"its labels are no list of texts or numbers, but {labels!r:.60}")
    names = [str(label).strip() for label in labels]
    if len(set(names)) < len(names):
        raise ValueError(f"two of its labels are alike: {names!r:.200}")
    return names


def _read_right(value: Any, options: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """What the right option may be meant by -> its number then, which may be none of them."""
    readings = {}
    is_text, is_number = isinstance(value, str), type(value) is int
    text = str(value).strip() if is_text or is_number else ""
    if (value if is_text else text) in options:
        readings["text"] = options.index(value if is_text else text)
    if names and text in names:
        readings["label"] = names.index(text)
    if not names and is_text and len(text) == 1 and text.upper() in LETTERS:
        readings["letter"] = LETTERS.index(text.upper())
    if text.isdecimal() and not any(name.isdecimal() for name in names):
        readings["number"] = int(text)
    return readings


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
