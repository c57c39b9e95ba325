"""Requests that are taken, and those that are refused with the field that is wrong."""

import json
import types

import pytest

from research.data.config import DataConfig
from research.data.sources import TfdsConfig
from research.generation.responders import Responder
from research.objectives import Chat
from research.serving.errors import RequestError
from research.serving.models import Models, ServedModel
from research.serving.protocol import parse_request
from tests.serving import served
from tests.text import templates

MESSAGES = [{"role": "user", "content": "red"}]
TOOL = {"type": "function", "function": {"name": "f"}}
CHOICE = {"type": "function", "function": {"name": "ff"}}


def parse(**fields):
    return parse_request(json.dumps({"model": "base", "messages": MESSAGES} | fields).encode())


@pytest.mark.parametrize(
    ("fields", "param", "part"),
    [
        ({"messages": []}, "messages", "empty"),
        ({"messages": "red"}, "messages", "list"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", "'system'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "none"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "text",
        ),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "assistant"),
        ({"model": None}, "model", "string"),
        ({"temperature": -1}, "temperature", "greater"),
        ({"temperature": "1"}, "temperature", "number"),
        ({"top_p": 0}, "top_p", "greater"),
        ({"top_p": 1.5}, "top_p", "less"),
        ({"max_tokens": 0}, "max_tokens", "greater"),
        ({"max_tokens": 2.5}, "max_tokens", "integer"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_completion_tokens", "one of"),
        ({"n": 0}, "n", "greater"),
        ({"n": True}, "n", "integer"),
        ({"seed": -1}, "seed", "greater"),
        ({"stop": [""]}, "stop", "empty"),
        ({"stop": ["a"] * 17}, "stop", "16"),
        ({"stop": 3}, "stop", "string"),
        ({"stream": "yes"}, "stream", "boolean"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream=true"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "schema"),
        ({"tool_choice": "auto"}, "tool_choice", "no tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice", "required"),
        ({"tools": [TOOL, TOOL]}, "tools", "one name"),
        ({"tools": [TOOL], "tool_choice": CHOICE}, "tool_choice", "did you mean f?"),
        (
            {
                "tools": [TOOL],
                "tool_choice": "required",
                "response_format": {"type": "json_object"},
            },
            "tool_choice",
            "response_format",
        ),
        ({"logprobs": True}, "logprobs", "does not have it"),
        ({"top_logprobs": 3}, "top_logprobs", "does not have it"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "does not have it"),
        ({"presence_penalty": 0.5}, "presence_penalty", "does not have it"),
        ({"frequency_penalty": False}, "frequency_penalty", "does not have it"),
        ({"temprature": 1}, "temprature", "did you mean temperature?"),
    ],
)
def test_a_wrong_field_is_named(fields, param, part):
    with pytest.raises(RequestError) as error:
        parse(**fields)
    assert error.value.status == 400 and error.value.param == param
    assert error.value.message.startswith(param) and part in error.value.message
    assert set(error.value.body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"n": NaN}', b'{"seed": 1, "seed": 2}', b"\xff", b"[" * 10**5],
)
def test_a_body_that_is_no_object_is_refused(body):
    with pytest.raises(RequestError, match="body") as error:
        parse_request(body)
    assert error.value.status == 400


def test_values_that_change_nothing_are_taken():
    neutral = {"logprobs": False, "logit_bias": {}, "presence_penalty": 0.0, "top_logprobs": None}
    assert parse(**neutral, user="me", store=False, n=None) == parse(n=None)


def test_messages_come_as_templates_read_them():
    call = {"name": "weather", "arguments": '{"city": "Bern"}'}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": t} for t in ("re", "d")]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": call}]},
        {"role": "tool", "content": "rain", "tool_call_id": "1"},
    ]
    user, assistant, tool = parse(messages=messages).conversation[0]
    assert user == {"role": "user", "content": "red"}
    assert assistant["content"] == ""
    assert assistant["tool_calls"][0]["function"]["arguments"] == {"city": "Bern"}
    assert tool == messages[2]


@pytest.mark.parametrize(
    ("fields", "status", "part"),
    [
        ({"name": "lawn"}, 404, "did you mean law?"),
        ({"text": "red " * 200}, 400, "over the model's 128"),
        ({"max_tokens": 128}, 400, "over the model's 128"),
        ({"response_format": {"type": "json_object"}, "max_tokens": 1}, 400, "needs 3 tokens"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "there are tools"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "thing"}},
                }
            },
            400,
            "no JSON Schema",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_before_it_waits(fields, status, part):
    chat = served.request(**{"text": "red"} | fields)
    with pytest.raises(RequestError) as error:
        served.models().choices(chat)
    assert error.value.status == status and part in error.value.message


def test_tools_and_calls_are_written_by_the_chat_template():
    tokenizer = templates.tokenizer()
    data = DataConfig((TfdsConfig("a"),), 512, 4, Chat(template=templates.THINKING))
    experiment = types.SimpleNamespace(data=data)
    run = types.SimpleNamespace(experiment=experiment, tokenizer=tokenizer, sidecar_files={})
    model = ServedModel("base", Responder(run), frozenset({tokenizer.end_id}), 512)
    models = Models({"base": model}, None, 20)
    call = {"name": "weather", "arguments": '{"city": "Bern"}'}
    messages = [
        {"role": "user", "content": "words"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": call}]},
        {"role": "tool", "content": "some", "tool_call_id": "1"},
    ]

    def prompt(**fields):
        ((choice,), _) = models.choices(parse(messages=messages, **fields))
        return tokenizer.decode(choice.request.prompt, special=True)

    tools = [{"type": "function", "function": {"name": "weather"}}]
    text = prompt(tools=tools)
    assert text.startswith("<|im_start|>system\nTools: ") and '"name": "weather"' in text
    assert '<call>weather{"city": "Bern"}</call>' in text and "<result>some</result>" in text
    assert "Tools" not in prompt(tools=tools, tool_choice="none")
    thoughtless = prompt(tools=tools, chat_template_kwargs={"enable_thinking": False})
    assert thoughtless == f"{text}<think>\n\n</think>\n\n"
    with pytest.raises(RequestError, match="never reads 'mood'"):
        prompt(chat_template_kwargs={"mood": "glad"})
    with pytest.raises(RequestError, match="does not write calls as JSON"):
        prompt(tools=tools, tool_choice="required")
