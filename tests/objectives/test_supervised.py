"""The supervised objective: what is trained, what is cut, and the same prompt everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.objectives.supervised import Supervised
from research.text import tokenizer as tokenizer_lib
from research.text.token_table import Ragged, TokenTable

TEMPLATE = "Notice:\n{prompt}\nLicence:\n"


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_lib.train(["Notice: some words Licence: mit\n" * 5], 300)


def _table(tokenizer, pairs):
    def ragged(ids):
        offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids])])
        return Ragged(np.asarray([t for i in ids for t in i], np.uint16), offsets)

    prompts = ragged([tokenizer.encode(prompt) for prompt, _ in pairs])
    answers = ragged([[*tokenizer.encode(answer), tokenizer.end_id] for _, answer in pairs])
    sizes = {"prompt": np.asarray([len(p.encode()) for p, _ in pairs])}
    sizes["completion"] = np.asarray([len(a.encode()) for _, a in pairs])
    return TokenTable("made", {"prompt": prompts, "completion": answers}, sizes)


def _whole(examples, index):
    return examples.piece(index, 0, int(examples.lengths[index]))


def test_only_the_completion_and_its_end_are_trained_on(tokenizer):
    examples = Supervised(TEMPLATE).prepare(_table(tokenizer, [("words", "mit")]), tokenizer, 64)
    piece = _whole(examples, 0)
    before = [tokenizer.begin_id, *tokenizer.encode("Notice:\n")]
    before += [*tokenizer.encode("words"), *tokenizer.encode("\nLicence:\n")]
    answer = tokenizer.encode("mit")
    assert piece.tokens.tolist() == [*before, *answer]
    assert piece.targets[piece.weights > 0].tolist() == [*answer, tokenizer.end_id]
    assert piece.targets.tolist() == [*before[1:], *answer, tokenizer.end_id]
    assert examples.trained[0] == piece.weights.sum() and examples.bytes[0] == 3
    assert not examples.truncated.any() and not examples.splittable


PAIRS = st.lists(
    st.tuples(st.text("some words.", max_size=80), st.text("mit-", min_size=1, max_size=12)),
    min_size=1,
    max_size=5,
)


@given(PAIRS, st.sampled_from(["left", "right"]), st.integers(44, 90), st.integers(0, 14))
@settings(max_examples=80, deadline=None)
def test_prompts_are_cut_and_nothing_else(tokenizer, pairs, cut, window, reserve):
    objective = Supervised(TEMPLATE, cut=cut, answer_tokens=reserve)
    examples = objective.prepare(_table(tokenizer, pairs), tokenizer, window)
    head, tail = objective.fixed(tokenizer)
    for i, (prompt, answer) in enumerate(pairs):
        piece = _whole(examples, i)
        ids, answer_ids = tokenizer.encode(prompt), tokenizer.encode(answer)
        assert len(piece.tokens) == examples.lengths[i] <= window
        middle_end = len(piece.tokens) - len(tail) - len(answer_ids)
        middle = piece.tokens[1 + len(head) : middle_end].tolist()
        prompt_part = ids[len(ids) - len(middle) :] if cut == "left" else ids[: len(middle)]
        expected = [tokenizer.begin_id, *head, *prompt_part, *tail, *answer_ids]
        assert piece.tokens.tolist() == expected and middle == prompt_part
        assert examples.truncated[i] == (len(prompt_part) < len(ids))
        assert piece.targets[piece.weights > 0].tolist() == [*answer_ids, tokenizer.end_id]
        if examples.truncated[i]:  # Not more is cut than must be.
            assert len(piece.tokens) == window - max(0, reserve - len(answer_ids) - 1)
        # What is scored and generated from is what was trained on.
        prompt_ids, was_cut = objective.encode_prompt(
            tokenizer, prompt, window, answer=len(answer_ids) + 1
        )
        assert prompt_ids == expected[: len(expected) - len(answer_ids)]
        assert was_cut == examples.truncated[i]


def test_where_the_cut_falls_does_not_tell_how_long_the_answer_is(tokenizer):
    pairs = [("some words " * 30, "mit"), ("some words " * 30, "mit-mit-mit")]
    examples = Supervised(TEMPLATE).prepare(_table(tokenizer, pairs), tokenizer, 64)
    first = [int(np.argmax(_whole(examples, i).weights > 0)) for i in range(2)]
    assert examples.truncated.all() and first[0] == first[1]


def test_worked_examples_take_room_from_the_prompt_only(tokenizer):
    objective = Supervised(TEMPLATE, answer_tokens=4)
    shots = [7, 8, 9]
    with_shots, cut = objective.encode_prompt(tokenizer, "some words " * 30, 64, shots=shots)
    assert cut and len(with_shots) == 64 - 4 + 1
    assert with_shots[:4] == [tokenizer.begin_id, *shots]
    head, tail = objective.fixed(tokenizer)
    assert with_shots[4 : 4 + len(head)] == head and with_shots[-len(tail) :] == tail
    with pytest.raises(ValueError, match=r"no room for the prompt .* worked examples \(60\)"):
        objective.encode_prompt(tokenizer, "some words", 64, shots=[7] * 60)


def test_the_prefix_ends_where_the_answer_begins(tokenizer):
    table = _table(tokenizer, [("words", "mit")])
    piece = _whole(Supervised(TEMPLATE, bidirectional=True).prepare(table, tokenizer, 64), 0)
    first = int(np.argmax(piece.weights > 0))
    assert piece.prefix[: first + 1].all() and not piece.prefix[first + 1 :].any()


def test_an_answer_that_cannot_fit_names_its_row(tokenizer):
    pairs = [("a", "mit"), ("b", "xyz" * 50)]
    with pytest.raises(ValueError, match="made, row 1: the completion has .*never cut"):
        Supervised(TEMPLATE).prepare(_table(tokenizer, pairs), tokenizer, 64)


def test_special_tokens_count_in_the_template_and_not_in_the_data(tokenizer):
    table = _table(tokenizer, [("<|end|>", "mit")])
    template = "{prompt}<|end|>\n"
    piece = _whole(Supervised(template).prepare(table, tokenizer, 64), 0)
    assert (piece.tokens == tokenizer.end_id).sum() == 1


@pytest.mark.parametrize("settings_", [{"template": "no slot"}, {"template": "{prompt}{prompt}"}])
def test_a_template_without_one_slot_is_refused(settings_):
    with pytest.raises(ValueError, match="exactly once"):
        Supervised(**settings_)
    with pytest.raises(ValueError, match="'left' or 'right'"):
        Supervised(cut="middle")
