"""What the assistant says is found in any template, and nothing that a record says is lost."""

import pytest

from research.objectives.chat import Chat
from research.text.conversation import message_texts
from research.text.conversation_writer import Writer
from tests.text.faults import FAULTS, check
from tests.text.templates import (
    CALL,
    CHATML,
    EAGER,
    END,
    MARKED,
    QUESTION,
    THINKING,
    TOOL,
    TURNS,
    assistant,
    backend,
    check_refused,
    conversation,
    tokenizer,
    trained_texts,
    user,
    write_examples,
)

ASK = "<|im_start|>assistant\n"


def test_answers_share_a_text_until_the_template_rewrites_it():
    assert trained_texts(CHATML, TURNS) == [["b" + END, "d" + END]]
    (first, _), (second, trained) = write_examples(THINKING, TURNS)
    assert first == f"<|im_start|>user\na{END}\n{ASK}<think>\n\n</think>\n\nb{END}"
    assert f"{ASK}b{END}\n" in second and "</think>" not in second.split("c" + END)[0]
    assert trained == [("<think>\n\n</think>\n\nd" + END, 1.0)]


def test_the_assistants_turns_after_one_question_share_a_text_where_thoughts_are_kept():
    talk = [
        user("weather?"),
        assistant("", reasoning_content="I look.", tool_calls=[CALL]),
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
        assistant("It rains.", reasoning_content="So."),
    ]
    ((text, trained),) = write_examples(THINKING, {"messages": talk, "tools": [TOOL]})
    call = '<call>weather{"city": "O"}</call>'
    assert [text for text, _ in trained] == [
        f"<think>\nI look.\n</think>\n\n{call}{END}",
        f"<think>\nSo.\n</think>\n\nIt rains.{END}",
    ]
    assert "Weather of a city" in text and "<result>rain</result>" in text


@pytest.mark.parametrize(
    "message",
    [
        assistant("4", reasoning_content="Two and two."),
        assistant("4", thinking="Two and two."),
        assistant("4", reasoning="Two and two.", reasoning_content=None),
        assistant("<think>Two and two.</think>\n\n4"),
    ],
)
def test_thoughts_are_trained_or_masked(message):
    talk = [QUESTION, message]
    assert trained_texts(THINKING, talk) == [["<think>\nTwo and two.\n</think>\n\n4" + END]]
    ((text, trained),) = write_examples(THINKING, talk, reasoning="mask")
    assert trained == [("4" + END, 1.0)] and "Two and two.\n</think>\n\n4" in text
    assert "Two and two." in "\n".join(message_texts(conversation({"messages": talk}).messages[1]))


def test_thoughts_in_generation_blocks_are_masked():
    talk = [QUESTION, assistant("<think>\nTwo.\n</think>\n\n4"), *TURNS]
    assert trained_texts(MARKED, talk, reasoning="mask") == [
        ["4" + END, "\n", "b" + END, "\n", "d" + END]
    ]
    silent = CHATML.replace("m.content }}", "m.content.split('</think>')[-1] }}")
    check_refused("does not write '\\\\nTwo|does not write 'Two", silent, talk)


def test_thoughts_before_a_call_are_masked():
    talk = [user("weather?"), assistant(None, thinking="I look.", tool_calls=[CALL])]
    ((_, trained),) = write_examples(THINKING, talk, reasoning="mask")
    assert trained[0][0].startswith("<call>weather")


def test_what_the_generation_prompt_supplies_is_not_trained():
    no_thoughts = {"enable_thinking": False}
    ((text, trained),) = write_examples(THINKING, TURNS[:2], template_arguments=no_thoughts)
    assert trained == [("b" + END, 1.0)] and text.endswith(f"{ASK}<think>\n\n</think>\n\nb{END}")
    record = {"messages": TURNS[:2], "chat_template_kwargs": no_thoughts}
    assert trained_texts(THINKING, record) == [["b" + END]]
    record["chat_template_kwargs"] = {"enable_thinking": None}
    assert trained_texts(THINKING, record, template_arguments=no_thoughts) == [["b" + END]]
    record["chat_template_kwargs"] = '{"enable_thinking": true}'
    assert "<think>" in trained_texts(THINKING, record, template_arguments=no_thoughts)[0][0]


@pytest.mark.parametrize(
    ("fields", "weight"),
    [
        ({"train": False}, 0.0),
        ({"training": True}, 1.0),
        ({"weight": 0}, 0.0),
        ({"weight": 0.5}, 0.5),
        ({"loss": True, "loss_scale": 2.0}, 2.0),
        ({"loss": False, "loss_scale": 2.0}, 0.0),
        ({"loss_weight": 0.25}, 0.25),
        ({"weight": None}, 1.0),
    ],
)
def test_messages_say_how_much_they_count(fields, weight):
    ((text, trained),) = write_examples(CHATML, [TURNS[0], assistant("b", **fields), *TURNS[2:]])
    assert trained == [("b" + END, weight), ("d" + END, 1.0)][weight == 0 :]
    assert f"b{END}" in text


def test_an_answer_ends_before_the_header_that_is_written_unasked():
    """Llama 3's first template writes it behind every conversation."""
    ((text, trained),) = write_examples(EAGER, TURNS)
    assert trained == [("b" + END, 1.0), ("d" + END, 1.0)] and text.endswith("d" + END)
    calls = [{"id": i, "function": {"name": "weather", "arguments": {}}} for i in ("1", "2")]
    talk = [QUESTION, assistant("I look.", tool_calls=calls), *TURNS]
    calling = "I look." + "<|call|>weather<|call|>" * 2 + END
    assert trained_texts(EAGER, talk) == [[calling, "b" + END, "d" + END]]
    assert Chat(template=EAGER).stop_ids(tokenizer()) == (tokenizer().encode(END, special=True)[0],)
    check_refused("which is no special token", EAGER.replace("<|", "<"), TURNS)


def test_only_the_completions_answers_are_trained():
    record = {"prompt": TURNS[:3], "completion": TURNS[3:]}
    assert trained_texts(CHATML, record) == [["d" + END]]
    assert trained_texts(THINKING, record) == [["<think>\n\n</think>\n\nd" + END]]


def test_generation_blocks_are_what_is_trained():
    """With the white space in them, except at the end, where the model has stopped."""
    assert trained_texts(MARKED, TURNS) == [["b" + END, "\n", "d" + END]]
    supplied = MARKED.replace("assistant\n{% endif", "assistant\n<think>{% endif")
    supplied = supplied.replace("{% generation %}", "{% generation %}<think>")
    assert trained_texts(supplied, TURNS[:2]) == [["b" + END]]
    empty = MARKED.replace("{{ m.content }}<|im_end|>\n{% endgen", "{% endgen").replace(
        "{% endgeneration %}", "{% endgeneration %}{{ m.content }}<|im_end|>\n"
    )
    check_refused("blocks hold nothing of message 1", empty, TURNS)
    endless = MARKED.replace("<|im_end|>\n{% endgen", "{% endgen", 1)
    endless = endless.replace("{% endgeneration %}", "{% endgeneration %}<|im_end|>\n")
    check_refused("generation %} block .* ends with '', .* before {% endgeneration", endless, TURNS)
    marked = "{% else %}{% generation %}{{ m.content }}{% endgeneration %}"
    all_marked = MARKED.replace("{% else %}{{ m.content }}", marked)
    check_refused("blocks mark message 0, of the user: only what", all_marked, TURNS)


LAST = MARKED.replace("{% if m.role == 'assistant' %}", "{% if m.role[0] == 'a' and loop.last %}")


@pytest.mark.heavy
@pytest.mark.parametrize("template", [MARKED, LAST])
@pytest.mark.parametrize("talk", [TURNS, TURNS[:2]])
def test_the_whole_conversation_says_which_answers_are_marked_as_in_transformers(template, talk):
    import transformers

    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend())
    marks = theirs.apply_chat_template(
        talk, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    writer = Writer(template, tokenizer())
    (example,) = writer.write(conversation({"messages": talk}))
    (ids,) = writer.encode([example.parts])
    mask = [bool(p.weight) for p, part in zip(example.parts, ids, strict=True) for _ in part]
    tokens = [token for part in ids for token in part]
    assert marks["input_ids"][: len(tokens)] == tokens
    assert [bool(mark) for mark in marks["assistant_masks"]][: len(mask)] == mask
    assert (
        example.answers == ((3,) if template == LAST and talk == TURNS else (1, 3))[: len(talk) - 1]
    )


def test_blocks_that_the_whole_conversation_marks_otherwise_are_refused():
    check_refused("mark none of the answers", LAST, [*TURNS, user("e")])
    parted = LAST.replace("{% else %}", "{% elif m.role[0] == 'a' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}<|im_end|>\n{% else %}")  # fmt: skip
    check_refused("mark message 1 as 'b<.im_end.>' otherwise where the whole", parted, TURNS)


def test_an_answer_that_spells_the_end_of_thoughts_is_not_split_there():
    """Trained on or before the answer that is."""
    split = [QUESTION, assistant("Tags: </think> ends them.")]
    check_refused("splits what the assistant says .message 1. at '</think>'", THINKING, split)
    check_refused("splits what the assistant says .message 1. at", THINKING, [*split, *TURNS])
    assert trained_texts(CHATML, split) == [[split[1]["content"] + END]]
    prompt = Writer(THINKING, tokenizer()).prompt(conversation({"messages": [*split, user("?")]}))
    assert "ends them." in prompt[-1].text  # as what a model has said
    opening = THINKING.replace(
        "assistant\\n' }}\n    {%- if e", "assistant\\n<think>' }}\n    {%- if e"
    )
    raw = [QUESTION, assistant("Two.</think>4")]
    assert trained_texts(opening, raw) == [["\nTwo.\n</think>\n\n4" + END]]
    whole = [QUESTION, assistant("It ends with </think>.", reasoning_content="Hm.")]
    assert trained_texts(THINKING, whole) == [
        ["<think>\nHm.\n</think>\n\nIt ends with </think>." + END]
    ]


def test_turns_of_one_speaker_and_a_last_question():
    talk = [*TURNS[:2], assistant("more")]
    assert trained_texts(CHATML, talk) == [["b" + END, "more" + END]]
    assert trained_texts(CHATML, [*TURNS, user("and?")]) == [["b" + END, "d" + END]]
    check_refused("Messages 1 and 2 are both the assistant's: write them as one", THINKING, talk)
    strict = "{% if messages | map(attribute='role') | list in twice %}{{ raise_exception('odd') }}"
    strict = "{% set twice = [['user', 'assistant', 'assistant']] %}" + strict + "{% endif %}"
    check_refused("does not take this conversation: odd", strict + CHATML, talk)


def test_a_prompt_that_the_whole_does_not_go_on_from_is_refused_with_the_setting():
    forgetful = CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif")
    check_refused("asks for message 1 with '<think>'.*`template_arguments`", forgetful, TURNS)


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_a_rewriting_template_are_mended(name):
    check(FAULTS[name], Writer(THINKING, tokenizer()), ("<call>weather", "</call>"))


def test_arguments_that_are_json_text_are_not_quoted_again():
    call = {"function": {"name": "weather", "arguments": '{"city": "O"}'}}
    talk = [QUESTION, assistant("", tool_calls=[call])]
    check_refused("arguments of a call in message 1 as quoted text", THINKING, talk)
    as_is = "(call.arguments if call.arguments is string else call.arguments | tojson)"
    template = THINKING.replace("call.arguments | tojson", as_is)
    assert '<call>weather{"city": "O"}</call>' in trained_texts(template, talk)[0][0]


@pytest.mark.parametrize("role", ["function_call", "tool_call"])
def test_calls_in_messages_of_their_own_role_are_the_assistants(role):
    turns = [
        {"from": "human", "value": "weather?"},
        {"from": role, "value": '{"name": "weather", "arguments": {"city": "O"}}'},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "It rains."},
    ]
    calling, answering = trained_texts(THINKING, {"conversations": turns})
    assert '<call>weather{"city": "O"}</call>' in calling[0] and "It rains." in answering[0]


def test_results_of_tools_come_in_the_order_of_the_calls():
    calls = [CALL, CALL | {"id": "2"}]
    results = [{"role": "tool", "tool_call_id": i, "content": f"r{i}"} for i in ("1", "2")]
    talk = [QUESTION, assistant("", tool_calls=calls), *results, assistant("b")]
    assert trained_texts(THINKING, talk)
    talk[2:4] = results[::-1]
    check_refused("message 2 answers the call '2' where '1' is next", THINKING, talk)
    with_ids = THINKING.replace("'<result>'", "'<result>' + m.tool_call_id")
    check_refused("message 2 answers the call '2' where '1' is next", with_ids, talk)
    with_ids = with_ids.replace("'<call>'", "m.tool_calls[loop.index0].id + '<call>'")
    assert trained_texts(with_ids, talk)


def test_results_of_tools_without_ids_come_in_the_order_of_the_names():
    calls = [{"function": {"name": name, "arguments": {}}} for name in ("rain", "wind")]
    results = [{"role": "tool", "name": n, "content": f"r-{n}"} for n in ("rain", "wind")]
    talk = [QUESTION, assistant("", tool_calls=calls), *results, assistant("b")]
    assert trained_texts(THINKING, talk)
    talk[2:4] = results[::-1]
    check_refused("message 2 answers the call 'wind' where 'rain' is next", THINKING, talk)
    with_names = THINKING.replace("'<result>'", "'<result>' + m.name")
    assert trained_texts(with_names, talk)


@pytest.mark.parametrize(
    "spelling", ["<|im_end|>", "<|im_start|>system\n", "<|end|>", "\ufdd1\ufdd3"]
)
def test_no_string_of_a_record_forges_a_token(spelling):
    call = {"function": {"name": "weather", "arguments": {spelling: [spelling]}}}
    tool = {"type": "function", "function": {"name": "f", "description": spelling}}
    talk = [
        user(f"a{spelling}"),
        assistant("", thinking=f"x{spelling}", tool_calls=[call]),
        {"role": "tool", "content": f"r{spelling}"},
        assistant(f"b{spelling}c"),
    ]
    writer = Writer(THINKING, tokenizer())
    source = conversation({"messages": talk, "tools": [tool]})
    (example, *_) = writer.write(source)
    (ids,) = writer.encode([example.parts])
    ends = tokenizer().encode(END, special=True)
    token_ids = [token for part in ids for token in part]
    assert token_ids.count(ends[0]) == len(talk) + 1
    text = "".join(writer.unmark(part.text) for part in example.parts)
    assert tokenizer().decode(token_ids, special=True) == text and text.count(spelling.strip()) >= 6
    prompt = writer.prompt_ids(conversation({"messages": talk[:3], "tools": [tool]}))
    assert prompt[: len(ids[0])] == ids[0]


def test_a_template_that_looks_for_a_special_token_in_a_message_gives_its_reason():
    talk = [user("a" + END), TURNS[1]]
    strict = "{% if '<|im_end|>' in messages[0].content %}{{ raise_exception('tags') }}{% endif %}"
    check_refused("does not take this conversation: tags", strict + CHATML, talk)
    counts = "{{ messages[0].content | length }}" + CHATML
    check_refused("spells a special token, which the template", counts, talk)


def test_prompts_are_the_beginnings_of_what_is_trained():
    for template in (CHATML, MARKED, THINKING):
        writer = Writer(template, tokenizer())
        examples = writer.write(conversation({"messages": TURNS}))
        (ids,) = writer.encode([examples[-1].parts])
        prompt = writer.prompt_ids(conversation({"messages": [*TURNS[:3]]}))
        flat = [token for part in ids for token in part]
        assert flat[: len(prompt)] == prompt and len(flat) - len(prompt) == len(ids[-1])
