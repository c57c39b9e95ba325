"""What a record says twice, and differently, or where it is not read, is refused by name."""

import json

import pytest

from research.data.sources import JsonlConfig, open_source
from research.data.sources.transforms import Filter, Template

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
]
SHARE = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]


def _open(tmp_path, records, **settings):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return open_source(JsonlConfig("a", str(path), **settings))


ANSWER = {"role": "assistant", "content": "Yes?"}


@pytest.mark.parametrize(
    "turns",
    [
        [TALK[1], ANSWER | {"train": False}],
        [TALK[1], ANSWER | {"reasoning_content": "deep"}],
        [TALK[1], ANSWER | {"content": "No."}],
        [TALK[1], ANSWER | {"content": [{"type": "text", "text": "Yes?", "train": False}]}],
        [{"from": "gpt", "value": "Hi"}, {"from": "human", "value": "Yes?"}],
        [ANSWER, TALK[1]],
        [{"content": "Hi"}, {"content": "Yes?"}],
    ],
)
@pytest.mark.parametrize("record", [{"messages": TALK[1:]}, {"prompt": "Hi", "completion": "Yes?"}])
def test_a_second_conversation_that_says_something_else_is_refused(tmp_path, record, turns):
    name = "conversations" if "messages" in record else "turns"
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: '{name}' would be lost"):
        _open(tmp_path, [record | {name: turns}])[0]
    for same in ([TALK[1], ANSWER | {"name": None}], SHARE):
        assert _open(tmp_path, [record | {name: same}])[0].keys() >= record.keys()


def test_template_arguments_under_two_names_are_refused_where_they_differ(tmp_path):
    record = {"messages": TALK, "template_arguments": {"think": True}}
    for other in ({"think": False}, {"think": 1}, {"effort": "low"}):
        with pytest.raises(ValueError, match="template_arguments and chat_template_kwargs differ"):
            _open(tmp_path, [record | {"chat_template_kwargs": other}])[0]
    for same in ({"think": True}, '{"think": true}', {}, {"think": True, "effort": None}):
        (row,) = _open(tmp_path, [record | {"chat_template_kwargs": same}])
        assert row["template_arguments"] == {"think": True}
    with pytest.raises(ValueError, match="'documents' and those of template_arguments differ"):
        _open(tmp_path, [record | {"template_arguments": {"documents": [1]}, "documents": [2]}])[0]


@pytest.mark.parametrize(
    "field",
    [{"sample_weight": 0.0}, {"loss_weights": [0, 0]}, {"lossMask": [[1, 0]]}, {"weights": "0"}]
    + [{"input_ids": [5, 2]}, {"labels": [-100, 2]}, {"prompt_token_ids": [1]}]
    + [{"attention_mask": [1, 0]}, {"train_on": False}, {"loss_multiplier": 0}, {"skip": True}],
)
def test_a_document_with_weights_or_tokens_under_any_name_is_refused(tmp_path, field):
    (name,) = field
    with pytest.raises(ValueError, match=rf"1: '{name}' \(.*unused_fields=\(\"{name}\",\)"):
        _open(tmp_path, [{"text": "a"} | field])[0]
    assert _open(tmp_path, [{"text": "a"} | field], unused_fields=(name,))[0]["text"] == "a"


def test_scores_categories_and_weights_of_one_beside_a_document_are_read_over(tmp_path):
    fields = {"weighted_score": 0.3, "labels": ["sports"], "score": 0.1, "loss_mask": [1, 1.0]}
    fields |= {"sample_weight": 1, "token_ids": [], "input_ids": None, "n_labels": 3}
    fields |= {"train_on": True, "loss_multiplier": 1, "skip": False}
    assert _open(tmp_path, [{"text": "a"} | fields])[0]["text"] == "a"


@pytest.mark.parametrize(
    ("number", "field", "message"),
    [
        (1, {"train": True}, "'train' asks to train on a message of the prompt; only the comp"),
        (0, {"loss": True}, "'loss' asks to train on a message of the prompt"),
        (1, {"weight": "abc"}, "'weight' must be true, false or a weight, not 'abc'"),
        (1, {"loss_scale": -1}, "'loss_scale' must be true, false or a weight, not -1"),
    ],
)
def test_weights_in_a_prompt_of_messages_are_checked(tmp_path, number, field, message):
    prompt = [TALK[1], ANSWER, TALK[1]]
    plain = {"prompt": prompt, "completion": [ANSWER]}
    for nothing in ({"train": False}, {"weight": 0}, {"loss": None}):
        marked = [{**turn, **nothing} for turn in prompt]
        rows = _open(tmp_path, [plain, {**plain, "prompt": marked}])
        assert rows[0]["messages"] == rows[1]["messages"]
    prompt[number] = prompt[number] | field
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: prompt\[{number}\]: {message}"):
        _open(tmp_path, [{**plain, "prompt": prompt}])[0]


@pytest.mark.parametrize(
    "content",
    [{"weight": 0}, {"system": "Be brief."}, {"tools": ["f"]}, {"loss_mask": [0, 1]}]
    + [{"rejected": "No."}, {"system_message": "Be brief."}, {"thinking": "deep"}],
)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda content: content,
        lambda content: {"extra": [{"n": 1}, {"more": content}]},
        lambda content: [content],
        json.dumps,
        lambda content: {"extra": f" {json.dumps([1, content])}"},
        lambda content: json.dumps({"extra": json.dumps(content)}),
        repr,
    ],
    ids=["plain", "deep", "list", "text", "text inside", "text in text", "python"],
)
def test_metadata_that_says_how_to_train_is_refused(tmp_path, content, wrap):
    record, (name,), content = {"prompt": "Hi", "completion": "Yes?"}, content, wrap(content)
    with pytest.raises(ValueError, match=rf"1: 'metadata' \({name} in it\) would be lost"):
        _open(tmp_path, [record | {"metadata": content}])[0]
    unused = {"unused_fields": ("metadata",)}
    assert _open(tmp_path, [record | {"metadata": content}], **unused)[0]
    usual = {"weight": 1, "label": "law", "text": "kept", "train": True, "tools": []}
    assert _open(tmp_path, [record | {"metadata": wrap(usual)}])[0]["completion"] == "Yes?"


def test_plain_metadata_is_no_hint(tmp_path):
    usual = {"label": False, "text": "[weight] 5 kg", "score": 0.1, "history": 0.3, "functions": 2}
    usual |= {"documents": ["d"], "notes": '{"weighted": 1}', "source": "{not JSON", "train": True}
    for content in (usual, [usual], json.dumps(usual), "[see] weight: 3", "a 'weight': 0"):
        record = {"prompt": "Hi", "completion": "Yes?", "metadata": content}
        assert _open(tmp_path, [record])[0]["completion"] == "Yes?"


@pytest.mark.parametrize("depth", [10, 700, 5000])
def test_a_record_of_any_depth_is_read_or_named_with_its_line(tmp_path, depth):
    record = {"prompt": "Hi", "completion": "Yes?"}
    deep = json.dumps(record)[:-1] + ', "metadata": ' + "[" * depth + "]" * depth + "}"
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(record)}\n{deep}\n")
    source = open_source(JsonlConfig("a", str(tmp_path / "a.jsonl"), bad_lines=0.5))
    assert (len(source), source.bad_lines) == ((2, 0) if depth == 10 else (1, 1))


def test_a_documents_fields_say_how_it_is_trained_on_at_any_depth(tmp_path):
    with pytest.raises(ValueError, match=r"1: 'info' \(loss_mask in it\) would be lost"):
        _open(tmp_path, [{"text": "a", "info": {"more": [{"loss_mask": [0]}]}}])[0]
    plain = {"stats": {"score": 0.5, "system": "x"}, "raw": '{"weight": 0}'}
    assert _open(tmp_path, [{"text": "a"} | plain])[0]["text"] == "a"


def test_an_answer_that_is_not_trained_on_is_none(tmp_path):
    turns = [TALK[1], ANSWER | {"weight": 0}, TALK[1], ANSWER | {"content": "No."}]
    assert _open(tmp_path, [{"messages": turns, "answer": "No."}])[0]
    with pytest.raises(ValueError, match="'answer' would be lost"):
        _open(tmp_path, [{"messages": turns, "answer": "Yes?"}])[0]


@pytest.mark.parametrize(
    ("record", "settings"),
    [
        (
            {"prompt": "RULE 1", "question": "Hi", "answer": "Yes?"},
            {"fields": {"prompt": "question", "completion": "answer"}},
        ),
        (
            {"prompt": "RULE 1", "question": "Hi", "completion": "Yes?"},
            {"transforms": (Template(fields={"prompt": "{question}"}),)},
        ),
        (
            {"prompt": "RULE 1", "question": "Hi", "completion": "Yes?"},
            {"transforms": (Filter("prompt"),), "fields": {"prompt": "question"}},
        ),
    ],
)
def test_a_field_whose_name_another_takes_is_refused_or_named_as_unused(tmp_path, record, settings):
    with pytest.raises(ValueError, match=r"1: 'prompt' \(.* writes over it\) would be lost"):
        _open(tmp_path, [record], **settings)[0]
    (row,) = _open(tmp_path, [record], unused_fields=("prompt",), **settings)
    assert (row["prompt"], row["completion"]) == ("Hi", "Yes?")
    for same in ("Hi", "", None):
        assert _open(tmp_path, [record | {"prompt": same}], **settings)[0]["prompt"] == "Hi"


def test_weights_and_conversations_are_not_renamed_over(tmp_path):
    record = {"prompt": "Hi", "completion": "Yes?", "train": False, "w": 1}
    with pytest.raises(ValueError, match=r"1: 'train' \(fields writes over it\) would be lost"):
        _open(tmp_path, [record], fields={"train": "w"})[0]
    with pytest.raises(ValueError, match=r"1: 'messages' \(fields writes over it\) would be lost"):
        _open(tmp_path, [{"messages": TALK, "chosen": SHARE}], fields={"messages": "chosen"})[0]
    swapped = _open(
        tmp_path, [record | {"train": 1}], fields={"prompt": "completion", "completion": "prompt"},
        unused_fields=("w",),
    )  # fmt: skip
    assert (swapped[0]["prompt"], swapped[0]["completion"]) == ("Yes?", "Hi")
