"""Chat with templates that rewrite earlier turns, weights of answers, and records told by name."""

import dataclasses
import json

import pytest

from research.data.config import DataConfig
from research.data.pipeline import Pipeline
from research.data.sources import JsonlConfig
from research.objectives.chat import Chat
from research.objectives.supervised import Supervised
from research.text.conversation import from_messages
from tests.objectives.cases import trained_texts, whole
from tests.text import templates
from tests.text.templates import assistant, user


def _write(folder, records):
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return (JsonlConfig("a", str(folder / "a.jsonl")),)


def _examples(folder, records, objective, window=256):
    config = DataConfig(_write(folder, records), window, 2, objective)
    return Pipeline(config, templates.tokenizer(), folder).rows["a"].examples


def _records(count):
    """Conversations of 2 to `count` exchanges, with thoughts, the first answers not trained on."""
    exchanges = [
        [user(f"q{turn}"), assistant(f"a{turn}", thinking=f"t{turn}", train=turn > 0)]
        for turn in range(count)
    ]
    return [{"messages": sum(exchanges[:n], [])} for n in range(2, count + 1)]


def test_a_conversation_gives_several_examples_where_its_template_rewrites_turns(tmp_path):
    tokenizer = templates.tokenizer()
    sources = _write(tmp_path, _records(4))
    config = DataConfig(sources, 256, 2, Chat(template=templates.THINKING))
    pipeline = Pipeline(config, tokenizer, tmp_path)
    examples = pipeline.rows["a"].examples
    assert examples.rows.tolist() == [0, 1, 1, 2, 2, 2] and examples.documents == 3
    note = "every turn, 6 examples of 3 conversations (the template writes earlier turns in "
    assert note in pipeline.statistics(1)["a"].format
    texts = [trained_texts(whole(examples, i), tokenizer) for i in range(len(examples))]
    turns = [1, 1, 2, 1, 2, 3]
    assert texts == [[f"<think>\nt{t}\n</think>\n\na{t}<|im_end|>"] for t in turns]
    assert examples.trained.tolist() == [whole(examples, i).weights.sum() for i in range(6)]
    sizes = [len(text.removesuffix("<|im_end|>")) for (text,) in texts]
    assert examples.bytes.tolist() == sizes
    assert examples.stops == tuple(tokenizer.encode("<|im_end|>", special=True))
    heldout = pipeline.heldout("a", "train")
    assert heldout.tokens == examples.trained.sum() and heldout.documents == 3


@pytest.mark.parametrize("template", [templates.THINKING, templates.CHATML])
def test_the_last_turn_alone_is_trained_by_choice(tmp_path, template):
    ignored = ("reasoning_content", "thinking") if template == templates.CHATML else ()
    objective = Chat(template=template, turns="last", ignored_fields=ignored)
    examples = _examples(tmp_path, _records(4), objective)
    assert len(examples) == 3 and examples.rows is None
    assert examples.note.startswith("the configured chat template, the last turn alone")
    texts = [trained_texts(whole(examples, i), templates.tokenizer()) for i in range(3)]
    assert [text[-12:] for (text,) in texts] == [f"a{n}<|im_end|>" for n in (1, 2, 3)]


def test_answers_count_as_much_as_they_say(tmp_path):
    talk = [user("q"), assistant("a", weight=0.5), user("q"), assistant("b")]
    objective = Chat(template=templates.CHATML)
    examples = _examples(tmp_path, [{"messages": talk}], objective)
    weights = whole(examples).weights
    assert weights[weights > 0].tolist() == [0.5] * 2 + [1.0] * 2
    assert examples.trained[0] == 4 and examples.bytes is None
    for message in talk[1::2]:
        message["weight"] = 0
    with pytest.raises(ValueError, match="row 0: every answer has weight 0"):
        _examples(tmp_path, [{"messages": talk}], objective)


def test_each_rewritten_turn_loses_its_own_beginning(tmp_path):
    records = [{"messages": [user("some words " * 5), assistant("it")] * 4}]
    objective = Chat(template=templates.THINKING)
    window = int(_examples(tmp_path, records, objective, 512).lengths[1])
    examples = _examples(tmp_path, records, objective, window)
    assert examples.truncated.tolist() == [False, False, True, True]
    assert (examples.lengths[1:] == window).all()
    refusing = dataclasses.replace(objective, too_long="refuse")
    with pytest.raises(ValueError, match=r"row 0: .* So are 1 of 1 conversations \(row 0\)"):
        _examples(tmp_path, records, refusing, window)
    lenient = dataclasses.replace(refusing, over_long=1.0)
    examples = _examples(tmp_path, records, lenient, window)
    assert (examples.lengths > 0).tolist() == [True, True, False, False]


def test_template_arguments_are_stated_and_prompts_are_written_with_them(tmp_path):
    tokenizer = templates.tokenizer()
    messages = [user("q"), assistant("a")]
    arguments = {"enable_thinking": False}
    objective = Chat(template=templates.THINKING, template_arguments=arguments)
    examples = _examples(tmp_path, [{"messages": messages}], objective)
    assert 'with {"enable_thinking": false}' in examples.note
    assert trained_texts(whole(examples), tokenizer) == ["a<|im_end|>"]
    ids, _ = objective.prompt_ids(tokenizer, from_messages(messages[:1]), 64)
    assert tokenizer.decode(ids, special=True).endswith("<think>\n\n</think>\n\n")
    objective = Chat(template=templates.THINKING, template_arguments={"mood": 1})
    with pytest.raises(ValueError, match="never reads 'mood'"):
        objective.encoder(tokenizer, 64)


def test_calls_of_tools_have_an_end_too():
    two_ends = templates.THINKING.replace(
        "{{- turn('assistant', text + calls.text) }}",
        "{{- turn('assistant', text + calls.text) if not calls.text }}"
        "{{- turn('assistant', text + calls.text)[:-11] + '<|im_start|>' if calls.text }}",
    )
    tokenizer = templates.tokenizer()
    ends = Chat(template=two_ends).stop_ids(tokenizer)
    assert [tokenizer.decode([end], special=True) for end in ends] == ["<|im_end|>", "<|im_start|>"]


LOOKALIKES = [
    ({"question": "a", "answer": "b"}, r'fields=\{"prompt": "question", "completion": "answer"\}'),
    ({"input": "a", "output": "b"}, r'fields=\{"prompt": "input", "completion": "output"\}'),
    ({"instruction": "a", "response": "b"}, r"looks like a pair \(instruction, response\)"),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a preference .*: .chosen.}"),
    ({"conversation": [{"role": "user"}]}, r'fields=\{"messages": "conversation"\}'),
    ({"messages": '[{"role": "user"}]'}, "messages as JSON text"),
    ({"words": "a"}, "Name the right one in the source's `fields`"),
]


@pytest.mark.parametrize("objective", [Chat(), Supervised()])
@pytest.mark.parametrize(("record", "match"), LOOKALIKES)
def test_what_a_record_looks_like_is_told_with_the_setting(tmp_path, objective, record, match):
    with pytest.raises(ValueError, match=rf"a:train, row 0: .*{match}"):
        _examples(tmp_path, [record], objective)


def test_messages_are_for_the_chat_objective(tmp_path):
    with pytest.raises(ValueError, match=r'These are messages: use data.objective.kind="chat"'):
        _examples(tmp_path, _records(2), Supervised())
