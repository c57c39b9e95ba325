"""Requests for chat completions as OpenAI's protocol writes them, checked field by field.

A field that would change the answer and that Graft does not have is refused by name; of others that
clients send, the value that changes nothing is taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from research.config.suggestions import suggestion
from research.runtime import unique_json
from research.serving.errors import RequestError

# Fields that say nothing about the answer: who asks, and how it is kept or billed.
WITHOUT_EFFECT = frozenset(
    "user metadata safety_identifier prompt_cache_key prompt_cache_retention".split()
)
# Fields of the protocol that Graft does not have -> the values with which they change nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (None,),
    "frequency_penalty": (None, 0),
    "function_call": (None,),
    "functions": (None,),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "parallel_tool_calls": (None, True),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None,),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "top_logprobs": (None, 0),
    "verbosity": (None,),
    "web_search_options": (None,),
}
MAX_STOPS, MAX_CHOICES = 16, 128

Number = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class _TextPart(_Strict):
    type: Literal["text"]
    text: str


class _FunctionCall(_Strict):
    name: str
    arguments: str | dict[str, Any]


class _ToolCall(_Strict):
    id: str | None = None
    type: Literal["function"] = "function"
    function: _FunctionCall


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_TextPart] | None = None
    name: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: None = None  # of answers that clients send back: what is there, none of it set
    audio: None = None
    annotations: list[None] | None = None
    function_call: None = None


class _Function(_Strict):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None


class _Tool(_Strict):
    type: Literal["function"]
    function: _Function


class _FunctionName(_Strict):
    name: str


class _NamedTool(_Strict):
    type: Literal["function"]
    function: _FunctionName


class _Schema(_Strict):
    name: str
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class _ResponseFormat(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None


class _StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class ChatRequest(_Strict):
    """A request, its fields as the protocol names them."""

    model: str
    messages: list[_Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    # the protocol's 1 unless it is given
    temperature: Number | None = Field(None, ge=0)
    top_p: Number | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**31)
    stop: str | list[str] | None = None
    response_format: _ResponseFormat | None = None
    tools: list[_Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | _NamedTool | None = None
    # beyond the protocol, named as other servers name them
    top_k: int | None = Field(None, ge=0, lt=2**31)
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def token_limit(self) -> int | None:
        """Most tokens of an answer; None: it does not say."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON Schema that answers are of; None: any text."""
        form = self.response_format
        if form is None or form.type == "text":
            return None
        return form.json_schema.json_schema if form.json_schema else {"type": "object"}

    @property
    def callable_tools(self) -> dict[str, dict[str, Any] | None]:
        """Functions that the answer may call -> JSON Schema of their arguments."""
        if self.tool_choice == "none":
            return {}
        tools = {tool.function.name: tool.function.parameters for tool in self.tools or ()}
        if isinstance(self.tool_choice, _NamedTool):
            name = self.tool_choice.function.name
            return {name: tools[name]}
        return tools

    @property
    def must_call(self) -> bool:
        """Whether the answer is a call, whatever the model."""
        return self.tool_choice not in (None, "auto", "none")

    @property
    def conversation(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Messages and tools as chat templates read them."""
        tools = [] if self.tool_choice == "none" else self.tools or []
        dumps = [tool.model_dump(exclude_unset=True) for tool in tools]
        return [_template_message(message) for message in self.messages], dumps


def parse_request(body: bytes) -> ChatRequest:
    """The request that the body of a POST holds.

    Raises:
      RequestError: it is none; says which field is wrong.
    """
    try:
        fields = unique_json.parse(body, strict=True)
    except ValueError as error:
        raise RequestError(f"the body is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise RequestError("the body must be a JSON object with `model` and `messages`")
    fields = _without_neutral(fields)
    try:
        request = ChatRequest.model_validate(fields)
    except pydantic.ValidationError as error:
        raise _field_error(error.errors(), fields) from None
    _check(request)
    return request


def _without_neutral(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that Graft has; RequestError for others that ask for something."""
    known = {}
    for name, value in fields.items():
        if name in WITHOUT_EFFECT:
            continue
        if name not in NEUTRAL:
            known[name] = value
        elif not any(
            value == neutral and _is_bool_alike(value, neutral) for neutral in NEUTRAL[name]
        ):
            raise RequestError(
                f"{name}: Graft's server does not have it, and without it the answer would be "
                "another: leave it out",
                param=name,
                code="unsupported_parameter",
            )
    return known


def _is_bool_alike(value: Any, neutral: Any) -> bool:
    """Whether both are truth values, or none is: to Python False is 0."""
    return isinstance(value, bool) == isinstance(neutral, bool)


def _field_error(errors: Sequence[Any], fields: Mapping[str, Any]) -> RequestError:
    """The first of pydantic's errors, with the path of its field."""
    # of a field that may be of several types, the error that is deepest
    error = max(
        errors, key=lambda each: (each["loc"][:1] == errors[0]["loc"][:1], len(each["loc"]))
    )
    place = [part for part in error["loc"] if isinstance(part, int) or _is_field(part)]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)[1:]
    message = error["msg"][:1].lower() + error["msg"][1:]
    if error["type"] == "extra_forbidden":
        message = "there is no such field, or Graft's server does not have it"
        if len(error["loc"]) == 1:
            message += suggestion(path, ChatRequest.model_fields)
    elif error["type"] == "too_short" and path == "messages":
        message = "it is empty: give at least one message"
    return RequestError(f"{path or 'the body'}: {message}", param=path or None)


def _is_field(part: str) -> bool:
    """Whether a part of pydantic's path is a field, and not the name of a type."""
    return part.isidentifier() and part not in ("str", "_TextPart")


def _check(request: ChatRequest) -> None:
    """RequestError for fields that do not go together."""
    both = request.max_tokens, request.max_completion_tokens
    if None not in both and both[0] != both[1]:
        raise RequestError(
            f"max_completion_tokens: it is {both[1]}, and max_tokens {both[0]}: give one of them",
            param="max_completion_tokens",
        )
    if len(request.stops) > MAX_STOPS or "" in request.stops:
        raise RequestError(f"stop: at most {MAX_STOPS} texts, none of them empty", param="stop")
    form = request.response_format
    if form is not None and (form.type == "json_schema") != (form.json_schema is not None):
        raise RequestError(
            "response_format: `json_schema` holds the schema of the type json_schema, and of that "
            "type alone",
            param="response_format",
        )
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options: only with stream=true", param="stream_options")
    _check_tools(request)
    for number, message in enumerate(request.messages):
        if message.content is None and not message.tool_calls:
            raise RequestError(
                f"messages[{number}].content: there is none", param=f"messages[{number}].content"
            )
    if request.messages[-1].role == "assistant":
        raise RequestError(
            "messages: the last one is the assistant's; an answer begins anew, after a message of "
            "another role",
            param="messages",
        )


def _check_tools(request: ChatRequest) -> None:
    """RequestError for a choice of tools that cannot be kept."""
    names = [tool.function.name for tool in request.tools or ()]
    if len(set(names)) < len(names):
        raise RequestError("tools: two functions have one name", param="tools")
    if request.tool_choice is not None and not request.tools:
        raise RequestError("tool_choice: there are no tools", param="tool_choice")
    if isinstance(request.tool_choice, _NamedTool):
        name = request.tool_choice.function.name
        if name not in names:
            raise RequestError(
                f"tool_choice: no tool is called {name!r}{suggestion(name, names)}",
                param="tool_choice",
            )
    if request.must_call and request.schema_of_answer is not None:
        raise RequestError(
            "tool_choice: with response_format the answer is no call; leave one of them out",
            param="tool_choice",
        )


def _template_message(message: _Message) -> dict[str, Any]:
    """A message as templates read it: text in one piece, arguments of calls as objects."""
    fields = message.model_dump(exclude_none=True)
    fields.pop("annotations", None)  # an empty list
    content = fields.get("content", "")
    if not isinstance(content, str):
        content = "".join(part["text"] for part in content)
    fields["content"] = content
    for call in fields.get("tool_calls", ()):
        call["function"]["arguments"] = _arguments(call["function"]["arguments"])
    return fields


def _arguments(value: Any) -> Any:
    """Arguments of a call, which the protocol writes as a text of JSON."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
