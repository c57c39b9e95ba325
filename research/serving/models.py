"""The models that a server offers by name, and the requests that they are asked with."""

from __future__ import annotations

import collections
import dataclasses
import json
import secrets
from collections.abc import Mapping
from typing import Any

from research import sharding
from research.adapters import banks, catalog
from research.checkpoints import runs
from research.config.suggestions import suggestion
from research.generation.constraints import CompiledGrammar, ConstraintConfig
from research.generation.constraints.json_schema import SchemaConstraint
from research.generation.constraints.lark import LarkConstraint
from research.generation.decoder import Request, prompt_length
from research.generation.responders import Responder, find_responders, find_stops
from research.generation.sampling import Sampling
from research.serving.engine import Choice
from research.serving.errors import RequestError
from research.serving.protocol import ChatRequest
from research.text.conversation import from_messages
from research.text.thoughts import ThoughtMarks
from research.text.tool_calls import CallForm, find_call_form

# Compiled schemas that are kept.
MAX_GRAMMARS = 32


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A responder, as requests name it."""

    name: str
    responder: Responder
    # tokens that end its answers
    ends: frozenset[int]
    # tokens of a prompt and its answer together, at most
    window: int
    # how its template writes calls of tools; None: it takes none, or they stay text
    call_form: CallForm | None = None
    # what marks its thoughts, which stay text
    marks: ThoughtMarks = dataclasses.field(default_factory=ThoughtMarks)

    @property
    def marker_tokens(self) -> dict[int, str]:
        """Special tokens that calls are written with -> their names."""
        tokens = self.responder.run.tokenizer.tokens()
        names = self.call_form.special if self.call_form is not None else ()
        return {tokens[name]: name for name in names}


class Models:
    """The models of a server: a run, or a base and its adapters.

    `choices` is called by one thread at a time.

    Attributes:
      by_name: the first is the base, or the only one.
      model: the `Transformer` that all of them are.
    """

    def __init__(self, by_name: Mapping[str, ServedModel], model: Any, tokens: int):
        """`tokens`: of an answer at most, where a request does not say."""
        self.by_name, self.model = dict(by_name), model
        self._tokens = tokens
        self._grammars: collections.OrderedDict[tuple[str, ...], CompiledGrammar] = (
            collections.OrderedDict()
        )

    def find(self, name: str) -> ServedModel:
        """The model of a name; RequestError with the nearest one where there is none."""
        if name not in self.by_name:
            raise RequestError(
                f"there is no model {name!r}{suggestion(name, self.by_name)}",
                404,
                param="model",
                code="model_not_found",
            )
        return self.by_name[name]

    def choices(self, request: ChatRequest) -> tuple[list[Choice], int]:
        """What the decoder is asked for a request, and the tokens of its prompt.

        Raises:
          RequestError: the model, the prompt or the schema is not one that can be answered.
        """
        served = self.find(request.model)
        prompt = self._prompt(served, request)
        room = served.window - len(prompt)
        limit = request.token_limit or min(self._tokens, max(room, 1))
        if limit > room:
            raise RequestError(
                f"messages: {len(prompt)} tokens and an answer of {limit} are over the model's "
                f"{served.window}: shorten the messages, or ask for {max(room, 0)} at most",
                param="messages",
                code="context_length_exceeded",
            )
        grammar = self._grammar(served, request)
        sampling = Sampling(
            temperature=1.0 if request.temperature is None else request.temperature,
            top_k=request.top_k or 0,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=secrets.randbelow(2**31) if request.seed is None else request.seed,
        )
        tokenizer = served.responder.run.tokenizer
        marker_tokens = dict(served.marks.tokens)
        if self.call_form(request) is not None:
            marker_tokens |= served.marker_tokens
        choices = []
        for number in range(request.n or 1):
            try:
                constraint = None if grammar is None else grammar.start(limit)
            except ValueError as error:
                raise RequestError(str(error), param="max_tokens") from None
            row = Request(
                prompt=prompt,
                new_tokens=limit,
                ends=served.ends,
                sampling=sampling,
                number=number,
                adapter=served.responder.number,
                constraint=constraint,
            )
            choices.append(Choice(row, tokenizer, request.stops, marker_tokens))
        return choices, len(prompt)

    def call_form(self, request: ChatRequest) -> CallForm | None:
        """How calls stand in the answers to a request; None: there are none, or they are text."""
        if not request.callable_tools or request.schema_of_answer is not None:
            return None
        return self.find(request.model).call_form

    def _prompt(self, served: ServedModel, request: ChatRequest) -> list[int]:
        messages, tools = request.conversation
        conversation = from_messages(messages, tools, request.chat_template_kwargs)
        try:
            prompt, is_cut = served.responder.prompt(conversation)
        except ValueError as error:
            raise RequestError(f"messages: {error}", param="messages") from None
        if is_cut:
            raise RequestError(
                f"messages: they are longer than the {len(prompt)} tokens that the model "
                f"{served.name} was tuned to read: shorten them",
                param="messages",
                code="context_length_exceeded",
            )
        return prompt

    def _grammar(self, served: ServedModel, request: ChatRequest) -> CompiledGrammar | None:
        """What the answers to a request must be; None: anything."""
        schema = request.schema_of_answer
        if request.must_call:
            schemas, field = request.callable_tools, "tool_choice"
            key = served.name, json.dumps(schemas), field
        elif schema is not None:
            field = "response_format"
            key = served.name, json.dumps(schema), field
        else:
            return None
        tokenizer = served.responder.run.tokenizer
        stops = sorted(served.ends - {tokenizer.end_id})
        try:
            if key not in self._grammars:
                constraint: ConstraintConfig
                if schema is not None:
                    constraint = SchemaConstraint(schema)
                else:
                    constraint = LarkConstraint(_call_form_of(served).grammar(schemas))
                size = self.model.config.vocabulary
                self._grammars[key] = constraint.compile(tokenizer, stops, size)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{field}: {error}", param=field) from None
        if len(self._grammars) > MAX_GRAMMARS:
            self._grammars.popitem(last=False)
        self._grammars.move_to_end(key)
        return self._grammars[key]


def _call_form_of(served: ServedModel) -> CallForm:
    if served.call_form is None:
        raise ValueError(
            f"the template of {served.name} does not write calls as JSON, so an answer cannot be "
            "made one: take auto"
        )
    return served.call_form


def load_models(
    path: str,
    adapters: list[str],
    mesh: Any,
    base: str | None = None,
    name: str = "base",
    tokens: int = 256,
    window: int | None = None,
) -> Models:
    """Opens a run and its adapters, inside `sharding.mesh_context` of `sharding.RULES`.

    Args:
      path: a run; the adapters' base, where there are some.
      adapters: `NAME=RUN` each.
      base: where a tuned run's base is, if it moved.
      name: of the run itself, or of the base.
      tokens: of an answer at most, where a request does not say.
      window: tokens of a prompt and its answer at most; None: what the model was made for.

    Raises:
      ValueError: adapters of other forms, a name twice, or a run that does not write text.
    """
    run = runs.open_run(path, base)
    adapter_runs = catalog.open_named(adapters, path)
    bank_names = list(adapter_runs) or list(run.method.bank_names)
    if name in bank_names:
        raise ValueError(f"--name {name}: one of the adapters has this name")
    responders = {}
    if bank_names:
        (responders[name],) = find_responders(run, adapter_runs, bank_names)
    for responder in find_responders(run, adapter_runs, ()):
        responders[responder.name or name] = responder
    served = {}
    for model_name, responder in responders.items():
        ends = {responder.run.tokenizer.end_id, *find_stops(run, [responder])}
        limit = window or responder.run.context_length
        writer, special = responder.writer, responder.run.tokenizer.special
        form = None if writer is None else find_call_form(writer, special)
        served[model_name] = ServedModel(
            model_name, responder, frozenset(ends), limit, form, responder.thought_marks()
        )
    if adapter_runs:
        model = banks.load_bank(adapter_runs, mesh, sharding.RULES)
    else:
        model = runs.load_model(run, mesh, sharding.RULES)
    front = prompt_length(model)
    served = {
        n: dataclasses.replace(each, window=each.window - front) for n, each in served.items()
    }
    return Models(served, model, tokens)
