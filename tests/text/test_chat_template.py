"""Chat templates: what they write, and what they may not do."""

import json

import pytest

from research.generation import decode
from research.text import chat_template, rendering
from tests.helpers import tiny

TEMPLATE = (
    "{%- for message in messages -%}\n"
    "    {%- if message.role not in ('user', 'assistant') -%}\n"
    "        {{- raise_exception('no role ' + message.role) -}}\n"
    "    {%- endif -%}\n"
    "    {{- bos_token + message.role + ': ' + message.content | trim + eos_token -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- bos_token + 'assistant: ' -}}{%- endif -%}"
)
TALK = [{"role": "user", "content": " Hi! "}, {"role": "assistant", "content": "Yes?"}]


def test_a_conversation_is_written_with_its_tokens_and_asks_for_an_answer():
    tokens = {"bos_token": "<", "eos_token": ">"}
    text = chat_template.render(TEMPLATE, TALK, tokens)
    assert text == "<user: Hi!><assistant: Yes?><assistant: "
    assert chat_template.render(TEMPLATE, TALK[:1], tokens, ask=False) == "<user: Hi!>"


@pytest.mark.parametrize(
    ("template", "messages", "match"),
    [
        (TEMPLATE, [{"role": "tool", "content": "x"}], "no role tool"),
        ("{{ messages[0].content", TALK, "does not take this conversation"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", TALK, "unsafe"),
        ("{{ messages.append(1) }}", TALK, "unsafe"),
    ],
)
def test_what_a_template_refuses_or_may_not_do_is_an_error(template, messages, match):
    with pytest.raises(ValueError, match=match):
        chat_template.render(template, messages, {})


def test_all_ends_of_a_turn_are_found_and_finish_a_row():
    files = {"generation_config.json": b'{"eos_token_id": [7, 9]}', "config.json": b"{}"}
    assert chat_template.find_stops(files | {"config.json": b'{"eos_token_id": 2}'}) == (7, 9, 2)
    model = tiny.model()
    (whole,) = decode.generate(model, [[3, 5]], 6, end_id=0)
    stop = whole[2]
    (cut,) = decode.generate(model, [[3, 5]], 6, end_id=0, stops=(stop,))
    assert cut == whole[: whole.index(stop)]


def test_templates_are_found_wherever_transformers_puts_them():
    def settings(value):
        return {chat_template.SETTINGS: json.dumps({"chat_template": value}).encode()}

    assert chat_template.find_template({}) is None
    assert chat_template.find_template(settings("a")) == "a"
    templates = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert chat_template.find_template(settings(templates)) == "d"
    assert chat_template.find_template({chat_template.TEMPLATE: b"file", **settings("a")}) == "file"


def test_tokens_and_the_template_with_tools_are_those_of_the_tokenizers_config():
    templates = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    settings = {
        "bos_token": None,
        "eos_token": {"content": "<e>"},
        "extra_special_tokens": {"image_token": "<i>"},
        "add_bos_token": True,
        "chat_template": templates,
    }
    files = {chat_template.SETTINGS: json.dumps(settings).encode()}
    assert chat_template.find_tokens(files) == {"eos_token": "<e>", "image_token": "<i>"}
    assert chat_template.find_tool_template(files) == "t"
    for content, tool_template in ((b"file", None), (b"d", "t")):
        both = files | {chat_template.TEMPLATE: content}
        assert chat_template.find_tool_template(both) == tool_template


def test_constants_that_jinja_computes_in_compiling_have_limits(monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 0.5)
    rendering._process().close()
    with pytest.raises(ValueError, match="no template of Jinja: it computes for more than 0.5 s"):
        chat_template.check_compiles("{{ 10 ** (10 ** 8) }}")
    rendering._process().close()
    chat_template.check_compiles("{{ messages }}")
    with pytest.raises(ValueError, match="No filter named 'none'"):
        chat_template.check_compiles("{{ messages | none }}")
