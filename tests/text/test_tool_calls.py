"""Calls of tools: how a template writes them, and which of an answer's texts are some."""

import json

import pytest

from research.text.conversation_writer import Writer
from research.text.tool_calls import CallForm, CallReader, ToolCall, find_call_form
from tests.text import templates

NAMES = ("weather", "time")
HERMES = CallForm("<tool_call>\n", "\n</tool_call>", "arguments", is_list=False)
MISTRAL = CallForm("<|call|>", "", "arguments", True, frozenset({"<|call|>"}))
LLAMA = CallForm("", "", "parameters", is_list=False)


def template(form, end="<|im_end|>"):
    """A template that writes one call, and tools, in a form."""
    call = f"{{'name': c.function.name, '{form.arguments}': c.function.arguments}}"
    value = f"[{call}]" if form.is_list else call
    return (
        "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{% if m.content %}{{ '\n' }}{% endif %}"
        f"{{{{ {form.begin!r} }}}}{{{{ {value} | tojson }}}}{{{{ {form.end!r} }}}}{{% endfor %}}"
        f"{end}\n{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


@pytest.mark.parametrize("form", [HERMES, MISTRAL, LLAMA], ids=["hermes", "mistral", "llama"])
def test_the_form_of_calls_is_what_the_template_writes(form):
    tokenizer = templates.tokenizer()
    assert find_call_form(Writer(template(form), tokenizer), tokenizer.special) == form


@pytest.mark.parametrize("other", [templates.CHATML, templates.THINKING, templates.EAGER])
def test_a_template_without_calls_or_with_others_has_no_form(other):
    tokenizer = templates.tokenizer()
    assert find_call_form(Writer(other, tokenizer), tokenizer.special) is None


def read(form, text, size):
    """Text and calls of an answer that comes in parts of so many characters."""
    reader = CallReader(form, NAMES)
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    pieces = [piece for part in parts for piece in reader.add(part)] + reader.finish()
    assert "" not in pieces
    calls = [piece for piece in pieces if isinstance(piece, ToolCall)]
    assert reader.has_calls == bool(calls)
    return "".join(piece for piece in pieces if isinstance(piece, str)), calls


def hermes(name="weather", **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


OSLO, NOON = ToolCall("weather", '{"city": "Oslo"}'), ToolCall("time", "{}")


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        (HERMES, hermes(city="Oslo"), ("", [OSLO])),
        (HERMES, f"Let me see.\n\n{hermes(city='Oslo')}\n", ("Let me see.", [OSLO])),
        (HERMES, hermes(city="Oslo") + "\n" + hermes("time"), ("", [OSLO, NOON])),
        # its end did not come, for a token ended the answer
        (HERMES, hermes(city="Oslo").removesuffix("</tool_call>"), ("", [OSLO])),
        (HERMES, f"<think>hm</think>\n{hermes('time')}", ("<think>hm</think>", [NOON])),
        (MISTRAL, '<|call|>[{"name": "time", "arguments": {}}]', ("", [NOON])),
        (MISTRAL, '<|call|> [{"name": "time", "arguments": {}, "id": "a1"}]',
         ("", [ToolCall("time", "{}", "a1")])),
        (LLAMA, '{"name": "weather", "parameters": {"city": "Oslo"}}', ("", [OSLO])),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_calls_are_told_from_text_however_it_comes(form, text, expected, size):
    assert read(form, text, size) == expected


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (HERMES, "No call.\n"),
        (HERMES, "a <tool_ca"),
        (HERMES, hermes("rain")),  # no tool of this name
        (HERMES, '<tool_call>\n{"name": "time", "arguments": {}} and so on\n</tool_call>'),
        (HERMES, '<tool_call>\n{"name": "time", "arguments": {}\n</tool_call>'),
        (HERMES, '<tool_call>\n{"name": "time", "arguments": "{}"}\n</tool_call>'),
        (HERMES, f"<think>as {hermes('time')}"),
        (MISTRAL, '[{"name": "time", "arguments": {}}]'),
        (LLAMA, '{"name": "time", "arguments": {}}'),  # of another key
        (LLAMA, '{"name": "time", "parameters": {}} it is'),
        (LLAMA, 'so: {"name": "time", "parameters": {}}'),
    ],
)
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_what_is_no_call_stays_the_text_that_it_is(form, text, size):
    assert read(form, text, size) == (text, [])


def test_a_text_goes_out_as_soon_as_it_can_be_no_call():
    reader = CallReader(HERMES, NAMES)
    assert reader.add("so <") == ["so"] and reader.add("b>") == [" <b>"]
    assert reader.add(f" {hermes('time')[:20]}") == [] and reader.add(hermes("time")[20:]) == [NOON]
