"""What a template leaves out of a conversation is refused by name, unless a setting names it."""

import pytest

from research.text import chat_template
from research.text import tokenizer as tokenizer_lib
from research.text.conversation_writer import Writer
from tests.text.templates import (
    CALL,
    CHATML,
    END,
    MARKED,
    QUESTION,
    THINKING,
    TOOL,
    TURNS,
    assistant,
    check_refused,
    conversation,
    tokenizer,
    trained_texts,
    user,
    write_examples,
)

NAMES_ONLY = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}" + CHATML
STRICT = {"type": "function", "function": {"name": "f"}, "strict": True}
LOSSES = [
    (CHATML, [QUESTION, assistant("4", reasoning_content="2")], "'reasoning_content' of message 1"),
    (CHATML, [QUESTION, assistant("4", tool_calls=[CALL])], "'tool_calls' of message 1"),
    (
        THINKING.replace("m.tool_calls or []", "(m.tool_calls or [])[-1:]"),
        [QUESTION, assistant("", tool_calls=[CALL, CALL | {"id": "2"}])],
        r"call 1 of 2 of message 1 \(assistant\)",
    ),
    (CHATML, [user("a", name="ann"), assistant("b")], r"'name' of message 0 \(user\)"),
    (CHATML, [QUESTION, assistant("4", mood="glad")], "'mood' of message 1"),
    (CHATML, {"messages": TURNS, "tools": [TOOL]}, "never reads 'tools'"),
    (CHATML, {"messages": TURNS, "template_arguments": {"mood": 1}}, "never reads 'mood'"),
    (
        CHATML,
        {"messages": TURNS, "template_arguments": {"tools": []}},
        "'tools' is not for records",
    ),
    (CHATML, {"messages": TURNS, "documents": [{"text": "x"}]}, "never reads 'documents'"),
    ("{% if tools %}{% endif %}" + CHATML, {"messages": TURNS, "tools": [TOOL]}, "out the tools"),
    (
        CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"),
        [{"role": "system", "content": "Be brief."}, *TURNS],
        r"what message 0 \(system\) says",
    ),
    (  # though its text stands elsewhere
        CHATML.replace(
            "{% for m in messages %}", "{% for m in messages if m.role != 'developer' %}"
        ),
        [{"role": "developer", "content": "Be brief."}, user("Please: Be brief."), TURNS[1]],
        r"what message 0 \(developer\) says",
    ),
    (
        CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"),
        [*TURNS[:2], {"role": "system", "content": "a"}, *TURNS[2:]],
        r"what message 2 \(system\) says",
    ),
    (
        THINKING,
        [QUESTION, assistant("", tool_calls=[CALL | {"result": "42"}])],
        "'result' of call 1",
    ),
    (
        THINKING,
        [QUESTION, assistant("", tool_calls=[{"function": CALL["function"] | {"note": "n"}}])],
        r"'function.note' of call 1 of message 1 \(assistant\)",
    ),
    (
        THINKING.replace("call.arguments |", "{'city': call.arguments.city} |"),
        [
            QUESTION,
            assistant(
                "", tool_calls=[{"function": {"name": "f", "arguments": {"city": "O", "days": 2}}}]
            ),
        ],
        "'function.arguments.days' of call 1",
    ),
    (
        NAMES_ONLY,
        {"messages": TURNS, "tools": [{"function": {"name": "f", "parameters": {"minLength": 3}}}]},
        "'function.parameters.minLength' of tool 1",
    ),
    (NAMES_ONLY, {"messages": TURNS, "tools": [STRICT]}, "'strict' of tool 1"),
    (THINKING, {"messages": TURNS, "template_arguments": {"m": "z"}}, "never reads 'm'"),
    (THINKING, {"messages": TURNS, "template_arguments": {"text": "z"}}, "never reads 'text'"),
    (
        THINKING,
        {"messages": TURNS, "template_arguments": {"enable_thinking": "false"}},
        "is the text 'false', .* without quotes",
    ),
]


def test_variables_with_a_default_are_read_and_those_of_the_template_are_not():
    template = (
        "{% macro turn(tools) %}{{ tools }}{% endmacro %}{% if day is not defined %}"
        "{% set day = 1 %}{% endif %}{% set mood = mood or 2 %}{% set own = 3 %}"
        "{% for item in items %}{{ item ~ own ~ loop.index }}{% endfor %}{{ turn(day) ~ mood }}"
    )
    assert chat_template.read_contents(template).names == {"day", "mood", "items"}


def test_parts_of_calls_and_tools_without_a_meaning_are_named_in_a_setting():
    call = CALL | {"result": "42", "function": CALL["function"] | {"note": "n"}}
    talk = [QUESTION, assistant("", tool_calls=[call])]
    assert trained_texts(THINKING, talk, ignored_fields=("result", "function.note"))
    tool = {"type": "function", "function": {"name": "f", "parameters": {"minLength": 3}}}
    assert trained_texts(
        NAMES_ONLY, {"messages": TURNS, "tools": [tool]}, ignored_fields=("minLength",)
    )


@pytest.mark.parametrize(("template", "record", "match"), LOSSES)
def test_what_a_template_leaves_out_is_refused_by_name(template, record, match):
    check_refused(match, template, record)


def test_a_template_of_its_own_for_tools_is_taken_with_them():
    """As transformers takes the one that is called tool_use; a configured one is for all."""
    own = tokenizer_lib.from_json(tokenizer().to_json(), "here")
    own.chat_template, own.tool_template = CHATML, THINKING
    plain, with_tools = (
        conversation({"messages": TURNS[:2], "tools": tools}) for tools in ([], [TOOL])
    )
    writer = Writer(CHATML, own)
    (example,), (tool_example,) = writer.write(plain), writer.write(with_tools)
    assert example.parts[0].text.startswith("<|im_start|>user")
    assert tool_example.parts[0].text.startswith("<|im_start|>system\nTools: ")
    own.chat_template = MARKED
    with pytest.raises(ValueError, match="never reads 'tools'"):
        writer_of_another = Writer(CHATML, own)
        writer_of_another.write(with_tools)


def test_fields_without_a_meaning_are_named_in_a_setting():
    talk = [user("a", name="ann"), assistant("b", mood="glad")]
    record = {"messages": talk, "tools": [TOOL], "template_arguments": {"mood": 1}}
    ignored = ("name", "mood", "tools")
    assert trained_texts(CHATML, record, ignored_fields=ignored) == [["b" + END]]


def test_fields_of_a_message_that_are_empty_are_not_missed():
    answer = {"role": "assistant", "content": "b", "annotations": [], "refusal": None, "audio": {}}
    record = {"messages": [{"role": "user", "content": "a", "name": ""}, answer]}
    assert trained_texts(CHATML, record) == [["b" + END]]


def test_a_field_that_the_template_writes_is_honoured():
    with_names = CHATML.replace("{{ m.role }}", "{{ m.role }}{{ ' ' + m.name if m.name else '' }}")
    ((text, _),) = write_examples(with_names, [user("a", name="ann"), assistant("b")])
    assert text.startswith("<|im_start|>user ann\n")
