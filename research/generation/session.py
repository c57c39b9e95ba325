"""A loaded model that answers: one prompt, several at once, or a conversation."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from research import methods, sharding
from research.adapters import banks
from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.generation import decode
from research.generation.constraints import CompiledGrammar, Constraint, ConstraintConfig
from research.generation.responders import (
    Responder,
    find_responders,
    find_stops,
    tell_left_out,
)
from research.generation.sampling import GREEDY, Sampling
from research.models.cache import CacheKind
from research.text.conversation import Conversation, from_messages
from research.text.thoughts import ThoughtMarks


@dataclasses.dataclass(frozen=True)
class AnswerSettings:
    """How prompts are answered."""

    # most tokens of an answer
    tokens: int = 64
    sampling: Sampling = GREEDY
    # what every answer must be; None: anything
    constraint: ConstraintConfig | None = None
    # how keys and values are stored; None: in the compute type
    cache_dtype: CacheKind | None = None
    # how all devices are arranged
    mesh: sharding.MeshConfig = sharding.MeshConfig()
    # no template, only the prompt's text
    raw: bool = False
    # what a chat template reads beside messages
    tools: Sequence[Any] = ()
    template_arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Session:
    """A loaded model, and the conversation with it."""

    # a `Transformer` with what is attached to it
    model: Any
    run: Run
    responders: Sequence[Responder]
    # tokens besides end-of-text that end an answer
    stops: tuple[int, ...]
    settings: AnswerSettings
    # the messages so far
    messages: list[dict[str, str]] = dataclasses.field(default_factory=list)

    @functools.cached_property
    def _grammar(self) -> CompiledGrammar | None:
        if self.settings.constraint is None:
            return None
        vocabulary = self.model.config.vocabulary
        return self.settings.constraint.compile(self.run.tokenizer, self.stops, vocabulary)

    @functools.cached_property
    def _marks(self) -> ThoughtMarks:
        """Of the first responder: all of them have its tokenizer, and mostly its template."""
        return self.responders[0].thought_marks()

    def answers(self, prompts: Sequence[str]) -> Iterator[str]:
        """Answers of every responder to every prompt, in one batch.

        Raises:
          ValueError: a constraint that the tokens of an answer do not suffice for; says how many.
        """
        prompt_ids = [
            responder.prompt_ids(self._conversation(prompt), self.settings.raw)
            for prompt in prompts
            for responder in self.responders
        ]
        adapter_numbers = [
            responder.number for responder in self.responders if responder.number is not None
        ]
        row_adapters = np.tile(adapter_numbers, len(prompts)) if adapter_numbers else None
        constraints = self._start(len(prompt_ids))
        tokenizer, failures = self.run.tokenizer, dict[int, str]()
        completions = decode.generate(
            self.model,
            prompt_ids,
            self.settings.tokens,
            tokenizer.end_id,
            self.settings.sampling,
            row_adapters,
            stops=self.stops,
            constraints=constraints,
            cache_dtype=self.settings.cache_dtype,
            on_failure=failures.__setitem__,
        )
        yield from (self._marks.decode(tokenizer, ids) for ids in completions)
        _tell_incomplete(constraints, failures)
        tell_left_out(self._marks, tokenizer, completions)

    def continue_conversation(self, prompt: str) -> Iterator[str]:
        """The parts of an answer as they are made; the next prompt goes on from it, where the
        model has a chat template."""
        tokenizer = self.run.tokenizer
        responder, constraints = self.responders[0], self._start(1)
        prompt_ids = responder.prompt_ids(
            self._conversation(prompt, self.messages), self.settings.raw
        )
        failures = dict[int, str]()
        columns = decode.stream(
            self.model,
            [prompt_ids],
            self.settings.tokens,
            tokenizer.end_id,
            self.settings.sampling,
            stops=self.stops,
            constraints=constraints,
            cache_dtype=self.settings.cache_dtype,
            on_failure=failures.__setitem__,
        )
        ends = {tokenizer.end_id, *self.stops}
        ids: list[int] = []

        def feed() -> Iterator[int]:
            for column in columns:
                if int(column[0]) not in ends:
                    ids.append(int(column[0]))
                    yield ids[-1]

        answer = ""
        for text in tokenizer.stream(feed(), names=self._marks.tokens):
            answer += text
            yield text
        _tell_incomplete(constraints, failures)
        tell_left_out(self._marks, tokenizer, [ids])
        if responder.reads_conversations and not self.settings.raw:
            self.messages.append({"role": "user", "content": prompt})
            are_open = self._marks.are_open(tokenizer, prompt_ids)
            self.messages.append(self._marks.message(answer, are_open))

    def _conversation(self, prompt: str, before: Sequence[dict[str, str]] = ()) -> Conversation:
        messages = [*before, {"role": "user", "content": prompt}]
        settings = self.settings
        return from_messages(messages, [*settings.tools], dict(settings.template_arguments))

    def _start(self, rows: int) -> list[Constraint] | None:
        if self._grammar is None:
            return None
        return [self._grammar.start(self.settings.tokens) for _ in range(rows)]


def _tell_incomplete(constraints: Sequence[Constraint] | None, failures: Mapping[int, str]) -> None:
    """Says on the terminal that answers are not what their constraint says.

    Args:
      failures: row -> why its constraint failed.
    """
    for row, failure in sorted(failures.items()):
        print(f"(answer {row + 1} ends where its constraint failed: {failure})", file=sys.stderr)
    rows = [
        number
        for number, each in enumerate(constraints or ())
        if number not in failures and not each.is_complete
    ]
    if rows:
        numbers = ", ".join(str(row + 1) for row in rows)
        print(f"(cut before it was whole: answer {numbers})", file=sys.stderr)


@contextlib.contextmanager
def open_session(
    run: Run,
    settings: AnswerSettings,
    adapters: Mapping[str, Run] | None = None,
    switched_off: Sequence[str] = (),
) -> Iterator[Session]:
    """Context with a run that answers, without a server.

    Args:
      run: a run, the base of `adapters`.
      adapters: name -> run, side by side.
      switched_off: adapters that do not answer.

    Raises:
      ValueError: an adapter that there is not, or a model that does not write text.
    """
    adapters = adapters or {}
    responders = find_responders(run, adapters, switched_off)
    stops = find_stops(run, responders)
    mesh, rules = settings.mesh.make(), sharding.RULES
    with sharding.mesh_context(mesh, rules):
        if adapters:
            model = banks.load_bank(adapters, mesh, rules)
        else:
            model = runs.load_model(run, mesh, rules)
        is_bank = responders[0].number is not None
        for name in [] if is_bank else switched_off:
            model = methods.switch_off(model, name)
        yield Session(model, run, responders, stops, settings)
