"""What marks a model's thoughts, and what an answer says after them."""

import pytest
import tokenizers

from research.generation.responders import tell_left_out
from research.text import tokenizer as tokenizer_lib
from research.text.conversation import from_messages
from research.text.conversation_writer import Writer
from research.text.thought_names import THINK, thought_pairs
from research.text.thoughts import ThoughtMarks, find_marks
from research.text.tool_calls import CallReader
from tests.text import templates, test_tool_calls
from tests.text.templates import CHATML, QUESTION, THINKING, assistant, conversation

# As gpt-oss's: an answer has a channel of its own, and so have thoughts; no `<think>` anywhere.
CHANNELS = """
{%- for m in messages %}
    {%- set thoughts = m.thinking or '' %}
    {%- if m.role == 'assistant' and thoughts and loop.last %}
        {{- '<|start|>assistant<|channel|>analysis<|message|>' + thoughts + '<|stop|>' }}
    {%- endif %}
    {%- if m.role == 'assistant' %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}
    {%- else %}
        {{- '<|start|>' + m.role + '<|message|>' + m.content + '<|stop|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}
"""
# As Seed-OSS's and Magistral's names.
SEED, MISTRAL = ("<seed:think>", "</seed:think>"), ("[THINK]", "[/THINK]")


def tokenizer(*special):
    base = tokenizers.Tokenizer.from_str(templates.tokenizer().to_json())
    base.add_special_tokens(["<|start|>", "<|channel|>", "<|message|>", "<|stop|>", *special])
    return tokenizer_lib.Tokenizer(base)


def between(pair):
    """A template that writes thoughts between two marks."""
    begin, end = pair
    thoughts = (
        f"{{% if m.reasoning_content %}}{begin}{{{{ m.reasoning_content }}}}{end}{{% endif %}}"
    )
    return CHATML.replace("{{ m.content }}", thoughts + "{{ m.content }}")


def test_thoughts_are_no_part_of_an_answer():
    without_thoughts = ThoughtMarks().without_thoughts
    assert without_thoughts("<think>\n7?\n</think>\n\n8") == "\n\n8"
    assert without_thoughts("so 7?</think>8") == "8"  # as where the prompt opens them
    assert without_thoughts("<think> 7") == "" and without_thoughts("7") == "7"
    assert without_thoughts("so 7?", are_open=True) == ""


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (SEED, [SEED]),
        (MISTRAL, [MISTRAL]),
        (THINK, [THINK]),
        (("<|START_THINKING|>", "<|END_THINKING|>"), [("<|START_THINKING|>", "<|END_THINKING|>")]),
        (("<|begin_of_thought|>", "<|end_of_thought|>"),
         [("<|begin_of_thought|>", "<|end_of_thought|>")]),
        (("<|channel>", "<channel|>"), [("<|channel>", "<channel|>")]),
        # no pairs: one alone, and tokens that are named for something else
        (("[THINK]", "<|channel|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "/think"), []),
    ],
)  # fmt: skip
def test_tokens_that_are_named_for_thoughts_mark_them(names, pairs):
    assert thought_pairs(names) == pairs


@pytest.mark.parametrize("pair", [SEED, MISTRAL, ("<|channel>", "<channel|>")])
@pytest.mark.parametrize("with_template", [True, False])
def test_thoughts_between_special_tokens_are_seen_and_no_answer(pair, with_template):
    """Special tokens vanish where tokens become text: what stood between them had been scored."""
    words, (begin, end) = tokenizer(*pair), pair
    writer = Writer(between(pair) if with_template else CHATML, words)
    marks = find_marks(words, writer)
    ids = words.encode(f"{begin}Is it 7?{end}It is 8.", special=True)
    assert words.decode(ids) == "Is it 7?It is 8."  # what was scored
    text = marks.decode(words, ids)
    assert text == f"{begin}Is it 7?{end}It is 8." and marks.without_thoughts(text) == "It is 8."
    cut = marks.decode(words, ids[: ids.index(words.tokens()[end])])
    assert marks.without_thoughts(cut) == ""
    plain_ids = words.encode("It is 8.")
    assert marks.without_thoughts(marks.decode(words, plain_ids)) == "It is 8."
    assert marks.are_open(words, words.encode(f"say{begin}\n", special=True))
    assert not marks.are_open(words, ids)


def test_channels_are_read_off_the_template():
    """What it writes before an answer without thoughts ends the thoughts of one that has some."""
    words = tokenizer()
    marks = find_marks(words, Writer(CHANNELS, words))
    begin, end = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
    assert marks.pairs == ((begin, end), THINK)
    answers = {
        f"{begin}7?<|stop|><|start|>assistant{end}8": "8",
        f"{end}8": "8",
        f"{begin}7?<|stop|>": "",
        "8": "8",
    }
    for answer, plain_text in answers.items():
        text = marks.decode(words, words.encode(answer, special=True))
        assert text == answer and marks.without_thoughts(text) == plain_text


def test_a_prompt_that_opens_thoughts_and_a_template_without_them():
    words = templates.tokenizer()
    assert find_marks(words, Writer(CHATML, words)).pairs == (THINK,)
    assert find_marks(words, Writer(THINKING, words)).pairs == (THINK,)
    assert find_marks(words, Writer(between(("<muse>", "</muse>")), words)).pairs == (
        ("<muse>", "</muse>"),
        THINK,
    )
    marks = find_marks(words, None, ["<muse>", "</muse>"])
    assert marks.without_thoughts("<muse>7</muse>8") == "8"
    # as Qwen3's of 2507: it begins every answer with thoughts, and the prompt opens them
    begin, end = "<my:thinking>", "</my:thinking>"
    thoughts = f"{begin}\n{{{{ m.reasoning_content or '' }}}}{end}"
    opening = CHATML.replace(
        "{{ m.content }}",
        f"{{% if m.role == 'assistant' %}}{thoughts}{{% endif %}}{{{{ m.content }}}}",
    ).replace("assistant\n{% endif", f"assistant\n{begin}\n{{% endif")
    writer = Writer(opening, words)
    marks, ids = (
        find_marks(words, writer),
        writer.prompt_ids(from_messages([QUESTION])),
    )
    assert marks.pairs == ((begin, end), THINK) and marks.are_open(words, ids)
    assert marks.without_thoughts(f"7?{end}8") == "8"


def test_an_answer_with_thoughts_goes_on_as_its_template_reads_it():
    words = tokenizer(*MISTRAL)
    writer = Writer(between(MISTRAL), words)
    marks = find_marks(words, writer)
    message = marks.message("[THINK] 7? [/THINK]8")
    talk = conversation({"messages": [QUESTION, message]})
    text = "".join(part.text for part in writer.write(talk)[-1].parts)
    assert "assistant\n[THINK]7?[/THINK]8<|im_end|>" in text
    # as before where the marks are text
    plain = {"role": "assistant", "content": "<think>7</think>8"}
    assert marks.message(plain["content"]) == plain


@pytest.mark.parametrize("reasoning", ["train", "mask"])
def test_special_tokens_around_thoughts_in_a_message_are_named(reasoning):
    """They would be trained on as the characters of their names, and as part of the answer."""
    words = tokenizer(*MISTRAL)
    talk = conversation({"messages": [QUESTION, assistant("[THINK]7?[/THINK]8")]})
    with pytest.raises(ValueError, match=r"Message 1 .*\[THINK\] and \[/THINK\].*special tokens"):
        Writer(CHATML, words, reasoning=reasoning).write(talk)


def test_tokens_that_are_no_special_ones_mask_the_thoughts_of_a_message():
    base = tokenizers.Tokenizer.from_str(templates.tokenizer().to_json())
    base.add_tokens([*SEED])
    words = tokenizer_lib.Tokenizer(base)
    content = "<seed:think>7?</seed:think>8"
    talk = conversation({"messages": [QUESTION, assistant(content)]})
    (example,) = Writer(CHATML, words, reasoning="mask").write(talk)
    assert [part.text for part in example.parts if part.weight] == ["8<|im_end|>"]


def test_special_tokens_that_nobody_explains_are_named(capsys):
    words = tokenizer()
    ids = words.encode("<|channel|>analysis<|message|>7?", special=True)
    names = tell_left_out(ThoughtMarks(), words, [ids, ids, words.encode("8")])
    assert names == {"<|channel|>", "<|message|>"}
    assert "of 3 answers" in (text := capsys.readouterr().err) and "<|channel|> in 2" in text
    assert not tell_left_out(ThoughtMarks(), words, [ids], names)
    assert capsys.readouterr().err == ""


def test_there_are_no_calls_among_thoughts_in_other_marks():
    call = test_tool_calls.hermes("time")
    marks = ThoughtMarks((MISTRAL,))
    reader = CallReader(test_tool_calls.HERMES, ("time",), marks)
    pieces = reader.add(f"[THINK]{call}[/THINK]") + reader.finish()
    assert "".join(pieces) == f"[THINK]{call}[/THINK]" and not reader.has_calls
    reader = CallReader(test_tool_calls.HERMES, ("time",), marks)
    assert reader.add(f"[THINK]hm[/THINK]{call}") + reader.finish() and reader.has_calls
