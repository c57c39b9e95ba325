"""A fault that is planted in a file is refused before training, with its row; clean data pass."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from research.data import checks, run_checks
from research.data.config import DataConfig
from research.data.pipeline import Pipeline
from research.data.run_checks import CheckConfig
from research.data.sources import JsonlConfig
from research.objectives import OBJECTIVES
from research.objectives.base import name_rows
from research.objectives.chat import Chat
from research.objectives.supervised import Supervised
from research.text import tokenizer as tokenizer_lib
from research.text.plain_template import PLAIN

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    base = tokenizer_lib.train(["user assistant some words and an end of it\n" * 9], 300)
    backend = tokenizers.Tokenizer.from_str(base.to_json())
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return tokenizer_lib.Tokenizer(backend)


def _pairs(count=12):
    return [{"prompt": f"some words {n}", "completion": f"end {n}"} for n in range(count)]


def _write(folder, split="train", rows=None):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"made.{split}.jsonl").write_text(lines, encoding="utf-8")


def _check(folder, tokenizer, objective="supervised", settings=None, split=None, **config):
    """Opens and checks `made.train.jsonl` as a training run does."""
    source = JsonlConfig("made", str(folder / "made.{split}.jsonl"))
    data = DataConfig((source,), 64, 4, OBJECTIVES[objective](**(settings or {})))
    pipeline = Pipeline(data, tokenizer, folder / "cache")
    run_checks.check_run(pipeline, CheckConfig(**config), split, folder / "cache")
    return pipeline


def _refused(message, *arguments, **settings):
    with pytest.raises(ValueError, match=message) as caught:
        _check(*arguments, **settings)
    return str(caught.value)


@pytest.mark.parametrize("objective", ["supervised", "chat"])
def test_clean_data_pass(tokenizer, tmp_path, objective):
    _write(tmp_path, rows=_pairs())
    _write(tmp_path, "test", [{"prompt": "other words", "completion": "it"}])
    _check(tmp_path, tokenizer, objective, split="test", splits=("test",))


@pytest.mark.parametrize("objective", ["supervised", "chat"])
def test_an_answer_that_would_be_cut_is_refused_and_a_share_of_them_left_out(
    tokenizer, tmp_path, objective
):
    rows = _pairs(20)
    for row in (7, 13):
        rows[row]["completion"] = "some words " * 40
    _write(tmp_path, rows=rows)
    error = _refused("made:train, row 7: the co", tmp_path, tokenizer, objective)
    assert "2 of 20" in error and "(rows 7, 13), and over_long allows 0.00%" in error
    _refused("rows 7, 13", tmp_path, tokenizer, objective, {"over_long": 0.09})
    pipeline = _check(tmp_path, tokenizer, objective, {"over_long": 0.1})
    examples = pipeline.rows["made"].examples
    assert np.flatnonzero(examples.lengths == 0).tolist() == [7, 13]
    assert not examples.trained[[7, 13]].any() and not examples.truncated.any()
    assert "2 over-long left out" in pipeline.statistics(1)["made"].format
    texts = [tokenizer.decode(t[w > 0]) for t, w in _rows(pipeline)]
    assert not any("some words some words" in text for text in texts)
    _write(tmp_path, rows=[rows[7], rows[13]])
    _refused("too long and left out", tmp_path, tokenizer, objective, {"over_long": 1.0})


def _rows(pipeline):
    rows = pipeline.rows["made"]
    return [(rows[i]["targets"], rows[i]["weights"]) for i in range(len(rows))]


@given(st.sets(st.integers(0, 29), min_size=1, max_size=29), st.integers(1, 20))
def test_over_long_answers_are_counted_by_row(tokenizer, tmp_path_factory, long, spare):
    folder, rows = tmp_path_factory.mktemp("long"), _pairs(30)
    for row in long:
        rows[row]["completion"] = "some words " * (30 + spare)
    _write(folder, rows=rows)
    message = f"row {min(long)}: .*{len(long)} of 30 examples \\({name_rows(np.array(list(long)))}"
    _refused(message, folder, tokenizer)
    share = len(long) / 30
    examples = _check(folder, tokenizer, settings={"over_long": share}).rows["made"].examples
    assert set(np.flatnonzero(examples.lengths == 0).tolist()) == long


def test_a_begin_token_that_a_template_doubles_is_named_by_row(tokenizer, tmp_path):
    template = "{% if messages[0].role == 'system' %}{{ bos_token }}{% endif %}" + PLAIN
    talk = [{"role": "user", "content": "some"}, {"role": "assistant", "content": "words"}]
    rows = [{"messages": talk[:1] * (n + 1) + talk[1:]} for n in range(9)]
    for row in (3, 8):
        rows[row]["messages"] = [{"role": "system", "content": "it"}, *talk]
    _write(tmp_path, rows=rows)
    error = _refused("begin token twice", tmp_path, tokenizer, "chat", {"template": template})
    assert "'made:train', rows 3, 8 have the begin token twice in a row" in error


def test_padding_that_a_template_writes_into_answers_is_refused(tokenizer, tmp_path):
    template = PLAIN.replace(
        "message.content + eos_token",
        "message.content + ('<|pad|>' if 'pad' in message.content else '') + eos_token",
    )
    rows = _pairs()
    rows[5]["completion"] = "a pad"
    _write(tmp_path, rows=rows)
    error = _refused("padding", tmp_path, tokenizer, "chat", {"template": template})
    assert f"'made:train', row 5 has padding (id {tokenizer.pad_id}) that is trained on" in error


def test_empty_completions_are_refused_and_a_share_of_them_passes(tokenizer, tmp_path):
    rows = _pairs()
    rows[2]["completion"] = rows[9]["completion"] = ""
    _write(tmp_path, rows=rows)
    for objective in ("supervised", "chat"):
        error = _refused("is empty in 2 of 12", tmp_path, tokenizer, objective)
        assert "'made:train'" in error and "(rows 2, 9)" in error
    _check(tmp_path, tokenizer, empty_answers=0.2)


def test_texts_that_are_all_equal_are_refused(tokenizer, tmp_path):
    _write(tmp_path, rows=[{"text": "some words"}] * 5)
    _refused("'made:train': all of its 5 texts are equal", tmp_path, tokenizer, "causal")
    _write(tmp_path, rows=[{"text": "some words"}] * 5 + [{"text": "more"}])
    _check(tmp_path, tokenizer, "causal")
    _write(tmp_path, rows=[{"text": "some words"}])
    _check(tmp_path, tokenizer, "causal")


def _broken(tokenizer, folder, rows, change):
    """Examples of a real file whose pieces an objective has spoilt in some rows."""
    _write(folder, rows=_pairs())
    examples = _check(folder, tokenizer).rows["made"].examples

    def piece(index, start, stop):
        whole = examples.piece(index, start, stop)
        return change(whole) if index in rows else whole

    return dataclasses.replace(examples, piece=piece)


@given(st.sets(st.integers(0, 11), min_size=1, max_size=12))
def test_what_an_objective_spoils_is_named_by_row(tokenizer, tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("spoilt")
    row_names = name_rows(np.array(sorted(rows)))

    def cut(piece):
        return dataclasses.replace(piece.between(0, len(piece.tokens) - 1))

    def outside(piece):
        return dataclasses.replace(piece, targets=piece.targets + 10_000)

    for change, message in (
        (cut, "cut off" if len(rows) < 12 else "never trains end-of-text"),
        (outside, "ids outside the vocabulary"),
    ):
        broken = _broken(tokenizer, folder, rows, change)
        with checks.collected() as faults:
            checks.check_examples(broken, tokenizer, 64)
        (matching_fault,) = [fault for fault in faults if message in fault]
        assert row_names in matching_fault or "never" in message
    examples = _broken(tokenizer, folder, (), cut)
    idle = np.where(np.isin(np.arange(12), list(rows)), 0, examples.trained)
    with checks.collected() as faults:
        checks.check_examples(dataclasses.replace(examples, trained=idle), tokenizer, 64)
    assert any("no token to train on" in fault for fault in faults)
    assert len(rows) == 12 or any(row_names in fault for fault in faults)


def test_what_is_collected_is_no_error_and_what_follows_is_one_again(tokenizer, tmp_path):
    _write(tmp_path, rows=[{"text": "some words"}] * 5)
    with checks.collected() as faults:
        _check(tmp_path, tokenizer, "causal")
    assert len(faults) == 1
    _refused("all of its 5 texts", tmp_path, tokenizer, "causal")


def _with_template(tokenizer, template=CHATML):
    own = tokenizer_lib.from_json(tokenizer.to_json(), "here", **tokenizer.roles)
    own.chat_template = template
    return own


def test_a_template_unlike_the_tokenizers_is_refused_with_both(tokenizer, tmp_path):
    _write(tmp_path, rows=_pairs())
    own = _with_template(tokenizer)
    theirs = "<|im_start|>user\\nWhat is red?<|im_end|>\\n<|im_start|>assistant\\n"
    for objective, settings, mine in (
        ("supervised", {"template": "Q: {prompt}\nA: "}, "<|begin|>Q: What is red?\\nA: "),
        ("chat", {"template": PLAIN}, "<|begin|>user\\nWhat is red?<|end|>\\n<|begin|>assistant"),
    ):
        error = _refused("unlike the chat template", tmp_path, own, objective, settings)
        assert mine in error and theirs in error and "checks.other_template" in error
        _check(tmp_path, own, objective, settings, other_template=True)
        _check(tmp_path, tokenizer, objective, settings)
    _check(tmp_path, own, "chat")
    _check(tmp_path, own, "chat", {"template": CHATML + "{# the same #}"})


def test_templates_are_compared_on_every_conversation_that_both_take(tokenizer):
    own = _with_template(
        tokenizer, "{{ raise_exception('no') if messages[0].role == 'system' }}" + CHATML
    )
    run_checks.check_template(Chat(template=CHATML), own)
    later = CHATML.replace("m.content", "(m.content if loop.first else m.content | trim + '.')")
    later = later.replace("if loop.first", "if loop.first or m.role == 'assistant'")
    with pytest.raises(ValueError, match=r"unlike the chat template(?s:.*)What is red\?\."):
        run_checks.check_template(Chat(template=later), own)


def test_a_template_that_writes_what_the_tokenizers_does_passes(tokenizer):
    template = (
        "{{ bos_token }}{% for m in messages %}Q: {{ m.content }}\nA: "
        "{{ eos_token if m.role == 'assistant' }}{% endfor %}"
    )
    own = _with_template(tokenizer, template)
    run_checks.check_template(Supervised(template="Q: {prompt}\nA: "), own)
    with pytest.raises(ValueError, match="unlike the chat template"):
        run_checks.check_template(Supervised(template="Q: {prompt}\nA:"), own)


def test_rows_of_a_held_out_split_that_are_trained_on_are_named_in_pairs(tokenizer, tmp_path):
    _write(tmp_path, rows=_pairs())
    heldout_rows = [{"prompt": f"other {n}", "completion": "it"} for n in range(10)]
    heldout_rows[4] = {"prompt": "  SOME\twords 8", "completion": "END 8"}
    heldout_rows[7] = {"prompt": "some words 2", "completion": "another"}
    _write(tmp_path, "test", heldout_rows)
    error = _refused("are trained on too", tmp_path, tokenizer, split="test")
    assert "1 of 10 rows (10.00%) of its split 'test'" in error
    assert "row 4 is row 8 of made:train." in error
    _refused("are trained on too", tmp_path, tokenizer, splits=("test",), overlap=0.09)
    _check(tmp_path, tokenizer, splits=("test",), overlap=0.1)
    _check(tmp_path, tokenizer, splits=("nowhere",), overlap=1.0)
    _refused("its split 'train' is held out and trained on", tmp_path, tokenizer, splits=("train",))
