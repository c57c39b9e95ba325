"""Small chat templates, in the ways of well-known ones, and a tokenizer that knows their tokens."""

import functools
import json

import pytest
import tokenizers

from research.data.sources import formats
from research.text import tokenizer as tokenizer_lib
from research.text.conversation import Conversation, read_conversation
from research.text.conversation_writer import Writer
from research.text.tokenizer import Tokenizer

# As Qwen3's: earlier answers lose their thoughts, the last has a think block even if empty; tools
# in the system's message; the prompt may supply an empty block.
THINKING = """
{%- macro turn(role, text) %}
    {{- '<|im_start|>' + role + '\\n' + text + '<|im_end|>\\n' }}
{%- endmacro %}
{%- if tools %}
    {{- turn('system', 'Tools: ' + tools | map('tojson') | join(', ')) }}
{%- endif %}
{%- set ns = namespace(question=-1) %}
{%- for m in messages if m.role == 'user' %}{% set ns.question = messages.index(m) %}{% endfor %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- set text, thoughts = m.content, m.reasoning_content or '' %}
        {%- if not thoughts and '</think>' in text %}
            {%- set thoughts = text.split('</think>')[0].split('<think>')[-1].strip() %}
            {%- set text = text.split('</think>')[-1].lstrip() %}
        {%- endif %}
        {%- if loop.index0 > ns.question and (loop.last or thoughts) %}
            {%- set text = '<think>\\n' + thoughts + '\\n</think>\\n\\n' + text %}
        {%- endif %}
        {%- set calls = namespace(text='') %}
        {%- for call in m.tool_calls or [] %}
            {%- set call = call.function %}
            {%- set calls.text = calls.text + '<call>' + call.name + call.arguments | tojson %}
            {%- set calls.text = calls.text + '</call>' %}
        {%- endfor %}
        {{- turn('assistant', text + calls.text) }}
    {%- elif m.role == 'tool' %}
        {{- turn('user', '<result>' + m.content + '</result>') }}
    {%- else %}
        {{- turn(m.role, m.content) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The same, which says itself what the assistant says.
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Llama 3's first: it asks for an answer always, asked to or not.
EAGER = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}"
    "{% for c in m.tool_calls or [] %}<|call|>{{ c.function.name }}<|call|>{% endfor %}<|im_end|>"
    "\n{% endfor %}{{ '<|im_start|>assistant\n' }}"
)


@functools.cache
def tokenizer() -> Tokenizer:
    return tokenizer_lib.Tokenizer(backend())


def backend() -> tokenizers.Tokenizer:
    base = tokenizer_lib.train(["user assistant some words and an end of it\n" * 9], 300)
    result = tokenizers.Tokenizer.from_str(base.to_json())
    result.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|call|>"])
    return result


def conversation(record: dict) -> Conversation:
    """The conversation of a record, as a source and the chat objective read it."""
    record = json.loads(json.dumps(record))
    form = formats.FORMATS[formats.name_format(record)]
    return read_conversation(record | form.convert(record, ()), "the record")


def user(text: str, **fields) -> dict:
    return {"role": "user", "content": text, **fields}


def assistant(text: str | None, **fields) -> dict:
    return {"role": "assistant", "content": text, **fields}


END = "<|im_end|>"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "O"}}}
QUESTION = user("What is 2+2?")
TURNS = [user("a"), assistant("b"), user("c"), assistant("d")]


def write_examples(template, record, **settings):
    """Each example as its whole text, and the stretches that are trained on with their weights."""
    record = record if isinstance(record, dict) else {"messages": record}
    return [
        (
            "".join(part.text for part in example.parts),
            [(part.text, part.weight) for part in example.parts if part.weight],
        )
        for example in Writer(template, tokenizer(), **settings).write(conversation(record))
    ]


def trained_texts(template, record, **settings):
    """The texts that are trained on, by example."""
    examples = write_examples(template, record, **settings)
    return [[text for text, _ in stretches] for _, stretches in examples]


def check_refused(match, template, record, **settings):
    with pytest.raises(ValueError, match=match):
        write_examples(template, record, **settings)
