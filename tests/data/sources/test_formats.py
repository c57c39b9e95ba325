"""Labelled formats: told apart, read, and refused where they are broken."""

import ast
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data.sources import JsonlConfig, decode_text, formats, open_source
from research.data.sources.transforms import Filter, Template

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
]
SHARE = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]
ALPACA = {"instruction": "Add.", "input": "1 1", "output": "2"}
SQUAD = {
    "context": "Roses are red.",
    "question": "What is red?",
    "answers": {"text": ["Roses", "roses"], "answer_start": [0, 0]},
}
ROLLOUT = {"prompt": "a", "answer": "b", "prompt_ids": [1], "answer_ids": [2, 3], "advantage": 0.5}

RECORDS = {
    "messages": ({"messages": TALK}, {"messages": TALK}),
    "sharegpt": ({"id": "x", "conversations": SHARE, "system": "Be brief."}, {"messages": TALK}),
    "prompt+completion messages": (
        {"prompt": TALK[:2], "completion": TALK[2:]},
        {"messages": TALK},
    ),
    "prompt+completion": ({"id": 1, "prompt": "a", "completion": "b"}, {}),
    "alpaca": (ALPACA, {"prompt": "Add.\n\n1 1", "completion": "2"}),
    "squad": (SQUAD, {"prompt": "Roses are red.\n\nWhat is red?", "completion": "Roses"}),
    "classification": ({"text": "good", "label": "yes"}, {"prompt": "good", "completion": "yes"}),
    "text": ({"text": "a", "label": 0.5}, {}),
    "preference": (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ),
    "labelled answers": (
        {"prompt": "a", "completion": "b", "label": False},
        {"prompt": "a", "rejected": "b"},
    ),
    "rollouts": (ROLLOUT, {name: ROLLOUT[name] for name in ("prompt", "answer")}),
    "other": ({"question": "a"}, {}),
}
# a record of it may be meant as one of another: the config names it
UNTOLD = {"labelled answers": {"format": "labelled answers"}}


def _open(tmp_path, records, **settings):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" if r else "{broken\n" for r in records))
    return open_source(JsonlConfig("a", str(path), **settings))


def test_every_format_has_a_record_here():
    assert list(RECORDS) == list(formats.FORMATS)


@pytest.mark.parametrize("name", RECORDS)
def test_a_format_is_told_and_read(tmp_path, name):
    record, added = RECORDS[name]
    source = _open(tmp_path, [record, record], **UNTOLD.get(name, {}))
    assert source.format == name
    assert source[1] == (added if formats.FORMATS[name].replaces else record | added)


def test_a_question_without_an_answer_has_an_empty_completion(tmp_path):
    """So that `checks.empty_answers` counts it."""
    record = SQUAD | {"answers": {"text": [], "answer_start": []}}
    source = _open(tmp_path, [record])
    assert source.format == "squad" and source[0]["completion"] == ""
    with pytest.raises(ValueError, match=r"a\.jsonl:1: answers\.text\[0\] must be text"):
        _open(tmp_path, [SQUAD | {"answers": {"text": [1]}}])[0]


@pytest.mark.parametrize("missing", [{}, {"input": ""}, {"input": None}])
def test_alpaca_without_input_asks_the_instruction_alone(tmp_path, missing):
    record = {"instruction": "Add.", "output": "2"} | missing
    assert _open(tmp_path, [record])[0]["prompt"] == "Add."


def test_label_words_are_said_for_numbers(tmp_path):
    records = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    source = _open(tmp_path, records, label_words=("bad", "good"))
    assert [source[i]["completion"] for i in range(2)] == ["good", "bad"]
    other = _open(tmp_path, records, label_words=("good", "bad"))
    assert other.fingerprint != source.fingerprint
    assert _open(tmp_path, records)[0] == records[0]
    for label in (2, -1):
        with pytest.raises(ValueError, match=rf"a\.jsonl:1: label {label} has no word"):
            _open(tmp_path, [{"text": "a", "label": label}], label_words=("bad", "good"))[0]
    with pytest.raises(ValueError, match="has label_words, but its records .* 'alpaca'"):
        _open(tmp_path, [ALPACA], label_words=("bad",))[0]


def test_fields_are_renamed_before_the_format_is_told(tmp_path):
    source = _open(tmp_path, [{"sentence": "a", "label": "b"}], fields={"text": "sentence"})
    assert source.format == "classification" and source[0]["prompt"] == "a"


def test_tools_and_arguments_as_json_text_are_read_where_they_are_empty_too(tmp_path):
    tool = {"function": {"name": "f"}}
    texts = [("[]", "{}"), (json.dumps([tool]), '{"x": 1}')]
    records = [{"messages": TALK, "tools": a, "template_arguments": b} for a, b in texts]
    source = _open(tmp_path, records)
    assert [(row["tools"], row["template_arguments"]) for row in (source[0], source[1])] == [
        ([], {}),
        ([tool], {"x": 1}),
    ]


def test_messages_of_parts_and_of_tfds_are_lists_of_texts(tmp_path):
    parts = [{"type": "text", "text": "Y"}, {"type": "text", "text": "es?"}]
    talk = [*TALK[:2], {"role": "assistant", "content": parts}]
    assert _open(tmp_path, [{"messages": talk}])[0]["messages"] == TALK
    columns = {
        name: np.asarray([turn[name].encode() for turn in TALK], object)
        for name in ("role", "content")
    }
    record = {"messages": decode_text(columns)}
    added = formats.FORMATS[formats.name_format(record)].convert(record, ())
    assert added == {"messages": TALK}


BROKEN = [
    ({"messages": []}, "the assistant says nothing"),
    ({"messages": TALK[:2]}, "the assistant says nothing"),
    ({"messages": [TALK[0], TALK[2]]}, "speaks before it is asked"),
    ({"messages": [*TALK[:2], {"role": "assistant", "content": " "}]}, r"messages\[2\]: the assi"),
    ({"messages": [{"role": "narrator", "content": "x"}]}, r"messages\[0\] has the unknown role"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, r"messages\[0\] has the unknown role"),
    ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\] must be text"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "content that is no text"),
    ({"messages": [TALK[1] | {"weight": 1}, TALK[2]]}, r"messages\[0\]: 'weight' asks to train"),
    ({"messages": [TALK[1], TALK[2] | {"train": "no"}]}, r"messages\[1\]: 'train' must be true"),
    ({"messages": [TALK[1], TALK[2] | {"loss_scale": -1}]}, r"messages\[1\]: 'loss_scale' must"),
    ({"messages": [TALK[1], TALK[2] | {"train_detail": [{"train": True}]}]}, "'train_detail'"),
    ({"messages": [TALK[1], TALK[2] | {"function_call": {"name": "f"}}]}, "write it as tool_calls"),
    ({"messages": [TALK[1] | {"tool_calls": [{}]}, TALK[2]]}, "role 'user' has 'tool_calls'"),
    ({"messages": [TALK[1], TALK[2] | {"tool_calls": "f()"}]}, "'tool_calls' must be a list"),
    ({"messages": [TALK[1] | {"thinking": "x"}, TALK[2]]}, "role 'user' has 'thinking'"),
    (
        {"messages": [TALK[1], TALK[2] | {"thinking": "x", "reasoning": "y"}]},
        "thinking and reasoning differ",
    ),
    ({"messages": [TALK[1], {"role": "tool_call", "content": "f("}]}, "a call of a tool as JSON"),
    ({"messages": [TALK[1], {"role": "tool_call", "content": "[1]"}]}, "with a name and arguments"),
    ({"prompt": "a", "completion": "b", "chat_template_kwargs": {"x": 1}}, "write messages beside"),
    (ALPACA | {"tools": [{"name": "f"}]}, "write it as tools, beside messages"),
    ({"messages": TALK, "tools": "[{"}, "field 'tools' is no JSON"),
    ({"messages": TALK, "tools": ["f"]}, r"tools\[0\] must be a JSON schema"),
    ({"messages": TALK, "tools": {"f": 1}}, "field 'tools' must be a list, not dict"),
    ({"messages": TALK, "functions": [{"name": "f"}]}, "write it as tools"),
    ({"messages": TALK, "enable_thinking": False}, "chat_template_kwargs"),
    ({"messages": TALK, "thinking": False}, "'thinking' .*write it as chat_template_kwargs"),
    ({"messages": TALK, "loss_mask": [0, 1]}, "'loss_mask' .give messages a weight"),
    ({"messages": TALK, "weights": [0, 1]}, "'weights' .give messages a weight"),
    ({"messages": TALK, "weight": "0"}, "'weight' .give messages a weight"),
    ({"messages": TALK, "system_prompt": "Be brief."}, "write it as system"),
    ({"messages": TALK, "tool_choice": "required"}, "no template reads it"),
    (
        {
            "messages": [
                TALK[0],
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "no", "train": False}],
                },
            ]
        },
        "a part of the content has 'train', which is not supported: weights are of whole",
    ),
    ({"messages": TALK, "label": False}, "'label' .leave records with bad answers out"),
    ({"messages": TALK, "rejected_response": "x"}, "'rejected_response' .learn from it"),
    ({"messages": TALK, "images": ["x.png"]}, "'images' .it is no text"),
    ({"messages": TALK, "weight": 0.5}, "'weight' .give messages a weight"),
    (
        {"prompt": "a", "completion": "b", "system": "Be brief."},
        "'system' .*as system, beside",
    ),
    ({"prompt": "a", "completion": "b", "label": 0}, "'label' .leave records with bad answers out"),
    ({"prompt": TALK[:2], "completion": "b"}, "field 'prompt' must be text, not list"),
    ({"messages": ["hi"]}, r"messages\[0\] must be a message"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "no Unicode"),
    ({"conversations": [{"from": "gpt", "value": "x"}]}, "speaks before it is asked"),
    (ALPACA | {"history": [["a", "b"]]}, "'history' .write it as messages"),
    (ALPACA | {"output": None}, "field 'output' must be text"),
    ({"prompt": "a", "completion": 3}, "field 'completion' must be text, not int"),
    ({"text": ["a"]}, "field 'text' must be text, not list"),
    ({"messages": {"role": ["user", "assistant"], "content": "QA"}}, "columns of one length each"),
    ({"messages": TALK, "documents": "[x"}, "field 'documents' is no JSON"),
    ({"messages": TALK, "documents": {"text": "x"}}, "field 'documents' must be a list, not dict"),
    ({"messages": TALK, "tools": "[" * 10_000}, "field 'tools' is no JSON: nested too deeply"),
]


@pytest.mark.parametrize(("record", "match"), BROKEN)
def test_a_record_that_breaks_its_format_names_its_line(tmp_path, record, match):
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: .*{match}"):
        _open(tmp_path, [record])[0]


@pytest.mark.parametrize("answers", ["Answer", None, ["A"], {"text": "Answer"}, {"text": None}])
def test_answers_that_are_no_list_are_refused_with_their_line(tmp_path, answers):
    source = _open(tmp_path, [SQUAD | {"answers": answers}], format="squad")
    with pytest.raises(ValueError, match=r"a\.jsonl:1: field 'answers' must have a list"):
        source[0]


@pytest.mark.parametrize("name", [name for name in RECORDS if name != "other"])
def test_a_late_record_of_another_shape_names_its_line_and_may_be_left_out(tmp_path, name):
    record, _ = RECORDS[name]
    for field in formats.FORMATS[name].needs:
        records = [record] * 70 + [{k: v for k, v in record.items() if k != field} | {"z": "y"}]
        with pytest.raises(ValueError, match=rf"a\.jsonl:71: there is no field '{field}', only"):
            list(_open(tmp_path, records, **UNTOLD.get(name, {})))
        source = _open(tmp_path, records, **UNTOLD.get(name, {}), bad_lines=0.1)
        assert (len(source), source.bad_lines) == (70, 1)


PAIR = {"prompt": "a", "completion": "b"}
RESULT = {"role": "tool", "content": "rain", "tool_call_id": "1"}


def _calling(*results, **fields):
    """A record whose answer calls a tool."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}} | fields}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    return {"messages": [TALK[1], answer, *results]}


@pytest.mark.parametrize("record", [PAIR, ALPACA, SQUAD, {"text": "a"}, {"text": "a", "label": 1}])
@pytest.mark.parametrize(
    "field",
    [{"weight": 0}, {"train": False}, {"loss_scale": 0.1}, {"weights": [0]}, {"loss": 0}]
    + [{"training": False}, {"loss_mask": [0]}, {"completion_mask": [0]}, {"kto_tag": False}],
)
def test_weights_beside_any_record_are_refused_by_name(tmp_path, record, field):
    (name,) = field
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: .*'{name}'"):
        _open(tmp_path, [record | field])[0]


UNREAD = [
    *[(PAIR, {name: value}) for name, value in {
        "enable_thinking": False, "functions": [1], "tool_calls": [1], "system_message": "s",
        "reasoning_content": "r", "chosen": "x", "response": "x", "is_correct": False,
        "input": "x", "context": "x", "instruction": "x", "suffix": "x", "label": 0, "score": 0,
        "category": "x", "is_impossible": True, "weight": 0, "text": "a b", "system": "s",
    }.items()],
    *[({"messages": TALK}, {name: value}) for name, value in {
        "conversations": SHARE[:1] + [{"from": "gpt", "value": "No."}], "completion": "x",
        "response": "x", "answer": 3, "output": "x", "chosen": TALK[:2], "prompt": "x",
        "reasoning_content": "r", "tool_calls": [1], "completion_mask": [0],
        "assistant_masks": [0], "is_correct": False, "train_on_inputs": True,
        "mask_history": True, "chat_template": "x", "parallel_tool_calls": False,
        "instruction": "x", "context": "x", "label": "x", "skip_prompt_formatting": False,
    }.items()],
]  # fmt: skip


@pytest.mark.parametrize(("record", "field"), UNREAD)
def test_what_would_be_lost_beside_a_record_is_refused_or_named_as_unused(tmp_path, record, field):
    (name,) = field
    with pytest.raises(ValueError, match=rf'a\.jsonl:1: .*{name}.* unused_fields=\("{name}",\)'):
        _open(tmp_path, [record | field])[0]
    assert _open(tmp_path, [record | field], unused_fields=(name,))[0].keys() >= record.keys()


def test_all_fields_that_no_format_reads_are_in_one_error_with_the_setting_to_paste(tmp_path):
    fields = {"score": 0.5, "Unnamed: 1": 3, "url": "x", "note": None, "tags": [], "weight": True}
    setting = '("score", "Unnamed:\\\\ 1")'
    with pytest.raises(ValueError) as caught:
        _open(tmp_path, [PAIR, PAIR | fields])[1]
    assert "a.jsonl:2: 'score', 'Unnamed: 1' would be lost." in str(caught.value)
    assert f"source 'a': unused_fields={setting} (format prompt+completion)" in str(caught.value)
    for unused in (ast.literal_eval(setting), (".*",)):
        assert _open(tmp_path, [PAIR, PAIR | fields], unused_fields=unused)[1] == PAIR | fields
    assert _open(tmp_path, [{"text": "a"} | fields])[0]["score"] == 0.5


def test_what_is_unused_is_read_by_no_objective_and_must_be_there(tmp_path):
    records = [PAIR, PAIR | {"text": "c", "score": 1}]
    source = _open(tmp_path, records, unused_fields=("text", "sc.*"))
    assert source[1] == PAIR | {"score": 1} and source.note == "without text, sc.*"
    for pattern in ("scor", "completion"):
        with pytest.raises(ValueError, match=f"unused_fields has '{pattern}', which matches no"):
            len(_open(tmp_path, records, unused_fields=("text", pattern)))
    with pytest.raises(ValueError, match=r"unused_fields: '\(' is no pattern"):
        _open(tmp_path, records, unused_fields=("(",))
    # those that may be left out are others with it
    marks = {
        _open(tmp_path, records, bad_lines=0.5, unused_fields=unused).fingerprint
        for unused in ((), ("text",), ("score",))
    }
    assert len(marks) == 3


def test_what_transforms_read_is_not_lost(tmp_path):
    record = {"question": "q", "choices": ["x", "y"], "answer": "x", "level": "easy", "score": 1}
    write = Template({"prompt": "{question} {choices[0]}", "completion": "{answer}"})
    keep = Filter("level", pattern="easy")
    with pytest.raises(ValueError, match=r'1: .score. would be lost.* unused_fields=\("score",\)'):
        _open(tmp_path, [record], transforms=(keep, write))[0]


def test_a_question_with_and_without_an_answer_is_refused(tmp_path):
    answered = SQUAD | {"is_impossible": False}
    assert _open(tmp_path, [answered])[0]["completion"] == "Roses"
    with pytest.raises(ValueError, match=r"a\.jsonl:1: .*'is_impossible' says that there is no"):
        _open(tmp_path, [SQUAD | {"is_impossible": True}])[0]


def test_an_answer_that_says_the_same_again_is_no_second_one(tmp_path):
    assert _open(tmp_path, [PAIR | {"answer": "b ", "question": "a"}])[0]["completion"] == "b"
    for field in ({"score": 1}, {"scores": [1]}, {"rejected": "1"}):
        with pytest.raises(ValueError, match="would be lost"):
            _open(tmp_path, [{"prompt": "a", "completion": "1"} | field])[0]
    record = {"messages": TALK, "prompt": "Hi", "chosen": TALK[1:], "conversations": SHARE}
    assert _open(tmp_path, [record])[0]["messages"] == TALK


@pytest.mark.parametrize(
    ("record", "match"),
    [
        (_calling(arguments="{bad"), "'f' are no JSON"),
        (_calling(arguments=None), "the call of 'f' has no 'arguments': write {}"),
        (_calling(arguments="[1]"), "of 'f' must be an object, not list"),
        (_calling(name=None), "no name of a function"),
        (_calling(RESULT | {"tool_call_id": "2"}), "message 2 .* '2', which no call .* are '1'"),
        (_calling(RESULT, RESULT), "message 3 .* no call waits"),
        ({"messages": [TALK[1], RESULT | {"name": "f"}, TALK[2]]}, "message 1 .*'f'.* no call"),
        (
            {"messages": [TALK[1], TALK[2] | {"tool_calls": [{"type": "custom"}]}]},
            r"messages\[1\]: tool_calls\[0\] is of type 'custom', .* as a function",
        ),
        ({"prompt": TALK[:2], "completion": {"role": ["x"], "content": []}}, "columns of one len"),
    ],
)
def test_broken_calls_and_results_are_refused_by_message(tmp_path, record, match):
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: .*{match}"):
        _open(tmp_path, [record])[0]


def test_results_after_calls_and_one_message_as_a_completion_are_read(tmp_path):
    spelled = {"role": "assistant", "content": '<tool_call>{"name": "f"}</tool_call>'}
    for record in (_calling(RESULT), {"messages": [TALK[1], spelled, RESULT, RESULT]}):
        assert len(_open(tmp_path, [record])[0]["messages"]) == len(record["messages"])
    assert _open(tmp_path, [{"prompt": TALK[:2], "completion": TALK[2]}])[0]["messages"] == TALK


def test_records_of_several_formats_are_refused_unless_one_is_chosen(tmp_path):
    records = [ALPACA, {"text": "a"}, ALPACA]
    with pytest.raises(ValueError, match=r"a\.jsonl:1 is 'alpaca', .*a\.jsonl:2 is 'text'"):
        _open(tmp_path, records)[0]
    source = _open(tmp_path, records, format="alpaca")
    assert source[2]["completion"] == "2"
    with pytest.raises(ValueError, match=r"a\.jsonl:2: there is no field 'instruction'"):
        source[1]
    with pytest.raises(ValueError, match="unknown format 'alpacca'; did you mean alpaca"):
        _open(tmp_path, records, format="alpacca")


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.data())
def test_a_tolerated_share_of_bad_lines_is_left_out_and_counted(tmp_path_factory, good, data):
    folder = tmp_path_factory.mktemp("lines")
    bad = data.draw(st.lists(st.sampled_from([None, {"text": 3}]), min_size=len(good)))
    records = [{"text": f"{i}"} if fine else bad[i] for i, fine in enumerate(good)]
    share = good.count(False) / len(good)
    if good.count(True) > good.count(False):
        source = _open(folder, records, bad_lines=share)
        expected = [{"text": f"{i}"} for i, fine in enumerate(good) if fine]
        assert [source[i] for i in range(len(source))] == expected
        assert source.bad_lines == good.count(False)
    if share:
        bad_lines = [rf"a\.jsonl:{i + 1}: " for i, fine in enumerate(good) if not fine][:5]
        message = f"{good.count(False)} of {len(good)} records.*" + ".*".join(bad_lines)
        with pytest.raises(ValueError, match=rf"(?s){message}"):
            len(_open(folder, records, bad_lines=share * 0.99))


def test_label_words_must_differ_and_hold_labels_that_are_text(tmp_path):
    with pytest.raises(ValueError, match="the same word for two labels"):
        _open(tmp_path, [{"text": "a", "label": 0}], label_words=("red", "red"))
    with pytest.raises(ValueError, match=r"a\.jsonl:1: label 'cat' is none of label_words \(dog\)"):
        _open(tmp_path, [{"text": "a", "label": "cat"}], label_words=("dog",))[0]


def test_a_source_of_bad_lines_alone_says_why(tmp_path):
    with pytest.raises(
        ValueError, match=r"none of 2 records can be read. The first:\n  .*a\.jsonl:1"
    ):
        len(_open(tmp_path, [{"text": 1}, {"text": 2}], format="text", bad_lines=1.0))
