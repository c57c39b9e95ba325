"""What holds for every objective that cuts documents and draws: hosts, checks, and attention."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from research.data import checks
from research.data.config import DataConfig
from research.data.pipeline import Pipeline
from research.data.sources import JsonlConfig
from research.objectives import OBJECTIVES
from research.text.conversation import from_messages
from research.training.heldout_loss import heldout_loss
from tests.helpers import tiny
from tests.helpers.reader import share
from tests.objectives import cases

NAMES = ["fill_in_the_middle", "masked", "prefix_lm", "span_corruption", "ul2"]
BOTH_WAYS = ["masked", "prefix_lm", "span_corruption", "ul2"]
TEXTS = ["some words. " * n + "are 😀" for n in (1, 9, 2, 40, 3, 1, 5, 70, 4, 2)]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """(objective, settings) -> its pipeline, made anew."""
    folder = tmp_path_factory.mktemp("data")
    for split, texts in (("train", TEXTS * 4), ("heldout", TEXTS)):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"made.{split}.jsonl").write_text(lines)

    def make(name, **settings):
        sources = (JsonlConfig("made", str(folder / "made.{split}.jsonl")),)
        config = DataConfig(sources, 48, 8, OBJECTIVES[name](**settings))
        return Pipeline(config, cases.tokenizer(), folder / "cache")

    return make


def _same(one, other):
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


QUESTION = {"role": "user", "content": "some"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
MORE = {
    "messages before": [{"role": "system", "content": "are"}, QUESTION],
    "3 messages before": [QUESTION, {"role": "assistant", "content": "words"}, QUESTION, QUESTION],
    "message of the assistant": [{"role": "assistant", "content": "words"}],
    "message of the tool": [{"role": "tool", "content": "22"}],
    "message's 'name'": [{**QUESTION, "name": "Bob"}],
    "message's 'tool_calls'": [{**QUESTION, "tool_calls": [CALL]}],
    "tools": [QUESTION],
    "template arguments": [QUESTION],
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_nothing_of_a_conversation_is_passed_over_where_it_has_no_place(name):
    objective, tokenizer = OBJECTIVES[name](), cases.tokenizer()
    ids, _ = objective.prompt_ids(tokenizer, from_messages([QUESTION]), 200)
    assert "some" in tokenizer.decode(ids)
    for what, messages in MORE.items() if not objective.reads_conversations else ():
        tools = [CALL] if what == "tools" else ()
        arguments = {"date": "1"} if what == "template arguments" else None
        conversation = from_messages(messages, tools, arguments)
        with pytest.raises(ValueError, match=rf"there are .*{what}.*, which would be lost"):
            objective.prompt_ids(tokenizer, conversation, 200)


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_the_same_in_any_order_and_on_any_number_of_hosts(pipeline, name):
    one, two = pipeline(name), pipeline(name)
    batches = [one.batch(step) for step in range(4)]
    assert all(_same(two.batch(step), batches[step]) for step in reversed(range(4)))
    for hosts in (2, 4):
        parts = [two.batch(3, share(host, hosts, len(batches[3].tokens))) for host in range(hosts)]
        assert _same(jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts), batches[3])
    assert not _same(pipeline(name, seed=1).batch(3), batches[3])


@pytest.mark.parametrize("name", NAMES)
def test_a_held_out_split_is_read_by_documents_though_they_are_cut(pipeline, name):
    train = pipeline(name)
    heldout = train.heldout("made", "heldout")
    examples = heldout.rows.examples
    assert len(examples) > heldout.documents == len(TEXTS) == len(heldout.source_rows)
    assert train.statistics(1)["made"].documents == 4 * len(TEXTS)
    weights = sum(float(batch.weights.sum()) for batch in heldout.batches())
    assert weights == heldout.tokens == examples.trained.sum()
    metrics = heldout_loss(lambda batch: np.ones(batch.tokens.shape), [heldout])
    assert metrics.pop("heldout_loss") == 1
    size = sum(len(text.encode()) for text in TEXTS)
    if name in ("masked", "span_corruption", "ul2"):  # no code for the text
        assert not metrics and train.statistics(1)["made"].bytes == 0
    else:
        assert size / 4 < heldout.bytes <= size
        assert metrics["heldout_bits_per_byte"] == heldout.tokens / np.log(2) / heldout.bytes


@pytest.mark.parametrize("name", NAMES)
def test_the_end_is_looked_for_where_documents_end(name, monkeypatch):
    tokenizer, objective = cases.tokenizer(), OBJECTIVES[name]()
    table = cases.table(["some words. " * 6001, "some words"], tokenizer)
    examples = objective.prepare(table, tokenizer, 32)
    monkeypatch.setattr(checks, "_DOCUMENTS", 64)
    assert len(examples) > 10 * checks._DOCUMENTS
    checks.check_examples(examples, tokenizer, 32)

    def endless(index, start, stop):
        piece = examples.piece(index, start, stop)
        weights = np.where(piece.targets == tokenizer.end_id, 0, piece.weights)
        return dataclasses.replace(piece, weights=weights)

    changed = dataclasses.replace(examples, piece=endless)
    if name == "masked":
        checks.check_examples(changed, tokenizer, 32)
    else:
        with pytest.raises(ValueError, match="never trains end-of-text"):
            checks.check_examples(changed, tokenizer, 32)


def test_a_doubled_begin_token_is_named_with_the_row_of_the_source():
    tokenizer = cases.tokenizer()
    table = cases.table(["", "some words. " * 20], tokenizer)
    objective = OBJECTIVES["fill_in_the_middle"](1.0, prefix="<|begin|>")
    with pytest.raises(ValueError, match="'made', row 1 has the begin token twice"):
        checks.check_examples(objective.prepare(table, tokenizer, 32), tokenizer, 32)


@jax.jit
def _logits(model, batch):
    return tiny.logits(model, batch)


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_a_prefix_sees_itself_both_ways_and_no_other_document(name):
    tokenizer = cases.tokenizer()
    examples = OBJECTIVES[name]().prepare(cases.table(TEXTS, tokenizer), tokenizer, 48)
    batch, _ = cases.batch(examples, tokenizer, 48)
    # a row in which the second of several documents has a prefix of several tokens
    second = (batch.segments == 2) & batch.prefix
    row = int(np.argmax(second.sum(1)))
    document = np.flatnonzero(batch.segments[row] == 2)
    prefix_length = int(second[row].sum())
    places = [document[prefix_length - 1], *document[prefix_length + 1 : prefix_length + 2]]
    tokens = np.tile(batch.tokens[row] % tiny.CONFIG.vocabulary, (3, 1))
    for changed, place in enumerate(places, start=1):
        tokens[changed, place] ^= 1
    rows = jax.tree.map(lambda leaf: np.tile(leaf[row], (3, 1)), batch)
    logits = np.asarray(_logits(tiny.model(), dataclasses.replace(rows, tokens=tokens)))
    moved = np.abs(logits[1:] - logits[0]).max(-1) * (batch.segments[row] > 0)
    # the last token of the prefix reaches all of its document, and nothing of another
    # (the model computes the same bits for a token that sees the same)
    assert prefix_length > 2 and (moved[0][document] > 1e-6).all()
    assert not np.delete(moved[0], document).any()
    if name == "masked":
        assert prefix_length == len(document)
    else:
        # a token after the prefix reaches only what follows
        assert (moved[1][document[prefix_length + 1 :]] > 1e-6).all()
        assert not np.delete(moved[1], document[prefix_length + 1 :]).any()
