"""Batches are a pure function of (config, seed, step), on any number of hosts."""

import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from research.batch import Batch
from research.config import schema
from research.data import checks
from research.data.config import DataConfig
from research.data.heldout import HeldOut
from research.data.mixture import MixtureConfig
from research.data.pipeline import Pipeline
from research.data.sources import JsonlConfig
from research.objectives import Supervised
from research.text import tokenizer as tokenizer_lib
from tests.helpers.reader import share
from tests.helpers.texts import WORDS

FIELDS = ("tokens", "targets", "weights", "segments", "positions")


def _documents(seed, count, longest):
    generator = np.random.default_rng(seed)
    return [
        " ".join(generator.choice(WORDS, generator.integers(1, longest))) + f" #{seed}.{i}"
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(folder, tokenizer): two sources of documents and one of labelled examples."""
    folder = tmp_path_factory.mktemp("data")
    for name, seed, count, longest in (("prose", 1, 60, 60), ("code", 2, 25, 9)):
        for split, size in (("train", count), ("heldout", 11)):
            texts = _documents(seed + (split != "train") * 10, size, longest)
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (folder / f"{name}.{split}.jsonl").write_text(lines)
    labelled = [{"prompt": text, "completion": text[-3:]} for text in _documents(5, 40, 12)]
    text = "".join(json.dumps(example) + "\n" for example in labelled)
    (folder / "labelled.train.jsonl").write_text(text)
    return folder, tokenizer_lib.train(_documents(1, 60, 60), 330)


def _source(data, name, weight=1.0):
    return JsonlConfig(name, str(data[0] / f"{name}.{{split}}.jsonl"), weight=weight)


def _config(data, **changes):
    sources = (_source(data, "prose", 3.0), _source(data, "code", 1.0))
    return DataConfig(sources, sequence_length=64, batch_size=8, seed=5, **changes)


def _pipeline(data, **changes):
    return Pipeline(_config(data, **changes), data[1], data[0] / "cache")


def _labelled(data, **settings):
    objective = Supervised(**{"answer_tokens": 4, **settings})
    config = DataConfig((_source(data, "labelled"),), 64, 8, objective)
    return Pipeline(config, data[1], data[0] / "cache")


def _assert_equal(a, b):
    for field in FIELDS:
        assert np.array_equal(getattr(a, field), getattr(b, field)), field


def _documents_of(rows, tokenizer):
    """Text of every document, put together again from the pieces in the rows."""
    pieces = {}
    plan = rows.plan
    for r in range(len(rows)):
        row = rows[r]
        for k, number in enumerate(range(plan.offsets[r], plan.offsets[r + 1]), start=1):
            here = row["segments"] == k
            place = int(plan.examples[number]), int(plan.starts[number])
            pieces[place] = row["targets"][here].tolist()
    texts = {}
    for document, start in sorted(pieces):
        texts.setdefault(document, []).extend(pieces[document, start])
    assert all(
        ids[-1] == tokenizer.end_id and tokenizer.end_id not in ids[:-1] for ids in texts.values()
    )
    return [tokenizer.decode(texts[i]) for i in sorted(texts)]


def test_batch_at_step_is_a_pure_function(data):
    one, two = _pipeline(data), _pipeline(data)
    forward = [one.batch(step) for step in range(12)]
    for step in reversed(range(12)):
        _assert_equal(two.batch(step), forward[step])
    other = dataclasses.replace(_config(data), seed=6)
    changed = Pipeline(other, data[1], data[0] / "cache").batch(3)
    assert not np.array_equal(changed.tokens, forward[3].tokens)


def test_a_new_process_reads_the_same_batch(data):
    expected = _pipeline(data).batch(37)
    code = (
        "import sys, json\n"
        "import numpy as np\n"
        "from research.config import schema\n"
        "from research.data.config import DataConfig\n"
        "from research.data.pipeline import Pipeline\n"
        "from research.text import tokenizer\n"
        "made = schema.build(DataConfig, json.loads(sys.argv[1]))\n"
        "batch = Pipeline(made, tokenizer.load(sys.argv[2]), sys.argv[3]).batch(37)\n"
        f"np.savez(sys.argv[4], **{{f: getattr(batch, f) for f in {FIELDS!r}}})\n"
    )
    folder, tokenizer = data
    tokenizer.save(folder / "tokenizer.json")
    config = json.dumps(dataclasses.asdict(_config(data)))
    paths = [folder / "tokenizer.json", folder / "other cache", folder / "batch.npz"]
    environment = {**os.environ, "PYTHONHASHSEED": "123", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, config, *map(str, paths)]
    subprocess.run(command, check=True, env=environment)
    with np.load(folder / "batch.npz") as arrays:
        for field in FIELDS:
            assert np.array_equal(arrays[field], getattr(expected, field))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_hosts_slices_are_the_global_batch(data, hosts):
    pipeline = _pipeline(data)
    for step in (0, 9):
        parts = [pipeline.batch(step, share(host, hosts, 8)) for host in range(hosts)]
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        _assert_equal(joined, pipeline.batch(step))


def test_a_host_may_feed_any_rows_in_any_order(data):
    pipeline = _pipeline(data)
    rows, whole = [6, 0, 3], pipeline.batch(5)
    _assert_equal(pipeline.batch(5, rows), jax.tree.map(lambda leaf: leaf[rows], whole))
    assert pipeline.rows_of(5, rows) == [pipeline.rows_of(5)[row] for row in rows]
    with pytest.raises(IndexError):
        pipeline.batch(5, [8])


def test_the_mixture_has_the_configured_shares(data):
    pipeline = _pipeline(data)
    code = {
        row["tokens"].tobytes()
        for row in map(pipeline.rows["code"].__getitem__, range(len(pipeline.rows["code"])))
    }
    rows = [row for step in range(50) for row in pipeline.batch(step).tokens]
    # shares are kept to a row or two, whatever the number of rows
    assert sum(row.tobytes() in code for row in rows) / len(rows) == pytest.approx(0.25, abs=0.01)


def test_an_epoch_reads_every_row_once_and_the_next_one_in_another_order(data):
    config = dataclasses.replace(_config(data), sources=(_source(data, "prose"),), batch_size=1)
    pipeline = Pipeline(config, data[1], data[0] / "cache")
    rows = pipeline.rows["prose"]
    every = Counter(rows[i]["tokens"].tobytes() for i in range(len(rows)))
    epochs = [
        [pipeline.batch(epoch * len(rows) + i).tokens.tobytes() for i in range(len(rows))]
        for epoch in range(2)
    ]
    assert Counter(epochs[0]) == Counter(epochs[1]) == every
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("pack", [True, False])
def test_the_text_can_be_read_back_from_the_rows(data, pack):
    pipeline = _pipeline(data, pack=pack)
    texts = _documents(1, 60, 60)
    assert _documents_of(pipeline.rows["prose"], data[1]) == texts
    assert pipeline.statistics(1)["prose"].bytes == sum(len(text.encode()) for text in texts)


def test_heldout_reads_every_token_once_and_pads_the_last_batch(data):
    heldout = _pipeline(data).heldout("prose", "heldout")
    texts = _documents(11, 11, 60)
    assert _documents_of(heldout.rows, data[1]) == texts
    assert heldout.bytes == sum(len(text.encode()) for text in texts)
    assert heldout.documents == 11 and len(heldout.rows) % 8
    batches = list(heldout.batches())
    assert len(batches) == len(heldout) and all(b.tokens.shape == (8, 64) for b in batches)
    token_count = sum(len(data[1].encode(text)) + 1 for text in texts)
    assert sum(b.weights.sum() for b in batches) == heldout.tokens == token_count
    assert not batches[-1].segments[len(heldout.rows) % 8 :].any()


def test_a_limited_heldout_set_counts_only_its_own_bytes(data):
    config, cache = _config(data), data[0] / "cache"
    part = HeldOut(config, data[1], cache, "prose", "heldout", max_tokens=200)
    assert 0 < part.tokens <= 200 and 0 < part.documents < 11
    texts = _documents_of(part.rows, data[1])
    assert set(texts) < set(_documents(11, 11, 60))
    assert part.bytes == sum(len(text.encode()) for text in texts)


def test_batches_made_ahead_are_the_same_and_their_threads_stop(data):
    pipeline = _pipeline(data)
    before = threading.active_count()
    stream = pipeline.batches(start_step=4)
    for step in range(4, 9):
        _assert_equal(next(stream), pipeline.batch(step))
    stream.close()
    until = time.monotonic() + 10  # they end with the batch that they are making
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_an_error_while_making_a_batch_reaches_the_reader(data):
    stream = _pipeline(data).batches(0, [8])
    with pytest.raises(IndexError):
        next(stream)


def test_statistics_say_what_the_steps_will_read(data, caplog):
    pipeline = _pipeline(data)
    with caplog.at_level(logging.WARNING):
        statistics = pipeline.statistics(steps=10)
    prose, code = statistics["prose"], statistics["code"]
    assert prose.documents == 60 and prose.truncated == 0 and prose.trained_share == 1.0
    assert prose.fill > 0.95 and prose.share == 0.75
    assert prose.epochs == 10 * 8 * 0.75 / prose.rows and code.epochs > 4
    assert "'code' is read" in caplog.text and "'prose'" not in caplog.text


def test_statistics_say_the_format_and_the_lines_left_out(data, tmp_path):
    rows = [{"instruction": text, "output": "yes"} for text in _documents(3, 9, 6)]
    lines = [*map(json.dumps, rows), "{broken"]
    (tmp_path / "alpaca.jsonl").write_text("\n".join(lines))
    source = JsonlConfig("alpaca", str(tmp_path / "alpaca.jsonl"), bad_lines=0.1)
    pipeline = Pipeline(DataConfig((source,), 64, 4, Supervised()), data[1], tmp_path / "cache")
    statistics = pipeline.statistics(1)["alpaca"]
    assert (statistics.format, statistics.bad_lines, statistics.documents) == ("alpaca", 1, 9)
    assert _pipeline(data).statistics(1)["prose"].format == "text"


def test_supervised_batches_hold_whole_examples_and_train_only_the_answers(data):
    pipeline = _labelled(data, template="Q:\n{prompt}\nA:\n")
    rows, tokenizer = pipeline.rows["labelled"], data[1]
    answers = []
    for r in range(len(rows)):
        row = rows[r]
        for segment in range(1, row["segments"].max() + 1):
            here = row["segments"] == segment
            text = tokenizer.decode(row["tokens"][here])
            trained = row["targets"][here][row["weights"][here] > 0]
            assert text.startswith("Q:\n") and trained[-1] == tokenizer.end_id
            assert tokenizer.decode(row["tokens"][here][:1], special=True) == "<|begin|>"
            answers.append(tokenizer.decode(trained))
            assert text.endswith("\nA:\n" + answers[-1])
    assert sorted(answers) == sorted(text[-3:] for text in _documents(5, 40, 12))
    assert 0 < pipeline.statistics(1)["labelled"].trained_share < 0.5


def test_only_a_bidirectional_objective_has_a_prefix(data):
    assert _labelled(data).batch(0).prefix is None
    batch = _labelled(data, bidirectional=True).batch(0)
    assert batch.prefix.dtype == bool and batch.prefix.any()
    answered = batch.weights[:, 1:] * batch.prefix[:, 1:]
    # Within the prefix only its last token is trained: it says the answer's first token.
    following = (
        np.roll(batch.prefix, -1, axis=1)[:, 1:]
        & (np.roll(batch.segments, -1, axis=1) == batch.segments)[:, 1:]
    )
    assert not (answered * following).any()


def test_the_batch_is_a_pytree_with_and_without_optional_leaves(data):
    batch = _pipeline(data).batch(0)
    assert len(jax.tree.leaves(batch)) == 5
    doubled = jax.jit(lambda b: dataclasses.replace(b, weights=b.weights * 2))(batch)
    assert isinstance(doubled, Batch) and float(doubled.weights.sum()) == 2 * batch.weights.sum()


def test_bad_data_is_an_error_before_compute(data, tmp_path):
    folder, tokenizer = data

    def build(**changes):
        return Pipeline(dataclasses.replace(_config(data), **changes), tokenizer, folder / "cache")

    (tmp_path / "empty.jsonl").write_text("\n")
    empty = JsonlConfig("empty", str(tmp_path / "empty.jsonl"))
    with pytest.raises(ValueError, match="'empty:train' is empty"):
        build(sources=(empty,))
    with pytest.raises(ValueError, match="'prose' is listed twice"):
        build(sources=(_source(data, "prose"), _source(data, "prose")))
    with pytest.raises(ValueError, match="weight of source 'code' must be positive"):
        build(sources=(_source(data, "prose"), _source(data, "code", 0.0)))
    content = schema.to_dict(_config(data))
    with pytest.raises(
        ValueError, match="objective.kind: there is no 'casual'; did you mean causal"
    ):
        schema.build(DataConfig, content | {"objective": {"kind": "casual"}})
    misspelt = {"kind": "supervised", "templat": "{prompt}"}
    with pytest.raises(ValueError, match=r"did you mean config\.objective\.template"):
        schema.build(DataConfig, content | {"objective": misspelt})
    with pytest.raises(ValueError, match="begin token twice"):
        _labelled(data, template="<|begin|>{prompt}\n")
    with pytest.raises(ValueError, match="labelled:train, row 0: the completion has"):
        _labelled(data, template="{prompt}\n" + "a long fixed part " * 20)
    with pytest.raises(ValueError, match="the model's vocabulary only 300"):
        Pipeline(_config(data), tokenizer, folder / "cache", model_vocabulary=300)


def test_a_batch_that_trains_nothing_or_padding_is_refused(data):
    batch = _pipeline(data).batch(0)
    checks.check_batch(batch, data[1].vocabulary_size)
    zeros, ones = np.zeros_like(batch.weights), np.ones_like(batch.weights)
    for change, message in (
        ({"weights": zeros}, "no token is trained on"),
        ({"weights": ones, "segments": np.zeros_like(batch.segments)}, "padding has weight"),
        ({"weights": ones * np.nan}, "finite"),
        ({"targets": batch.targets + 400}, "outside the vocabulary of 330"),
        ({"positions": batch.positions[:, :5]}, "positions must be int32 of shape"),
        ({"adapter": np.full(len(ones), -2)}, "adapter -2; -1 is none"),
    ):
        with pytest.raises(ValueError, match=message):
            checks.check_batch(dataclasses.replace(batch, **change), 330)


def test_an_objective_that_never_trains_the_end_is_refused(data):
    examples = _pipeline(data).rows["prose"].examples

    def endless(index, start, stop):
        piece = examples.piece(index, start, stop)
        weights = np.where(piece.targets == data[1].end_id, 0, piece.weights)
        return dataclasses.replace(piece, weights=weights)

    with pytest.raises(ValueError, match="never trains end-of-text"):
        checks.check_examples(dataclasses.replace(examples, piece=endless), data[1], 64)
    masked = dataclasses.replace(examples, trained=np.zeros_like(examples.trained))
    with pytest.raises(ValueError, match="no token to train on"):
        checks.check_examples(masked, data[1], 64)


def test_a_cap_below_one_batch_is_refused_before_a_batch_is_made(data):
    sources = (dataclasses.replace(_source(data, "prose"), max_epochs=0.1),)
    with pytest.raises(ValueError, match="rows to give and not the 8 of this run"):
        Pipeline(dataclasses.replace(_config(data), sources=sources), data[1], data[0] / "cache")


@given(
    st.sampled_from([1, 2, 3, 4, 8]),
    st.integers(1, 4),
    st.integers(17, 90),
    st.integers(0, 400),
    st.none() | st.floats(0.5, 4),
)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_hosts_of_any_number_read_one_stream_at_any_size(
    data, hosts, rows, length, step, temperature
):
    config = dataclasses.replace(
        _config(data),
        sequence_length=length,
        batch_size=hosts * rows,
        mixture=MixtureConfig(temperature=temperature),
    )
    whole, again = (Pipeline(config, data[1], data[0] / "cache") for _ in range(2))
    again.batch(step + 1)  # what was read before changes nothing
    shares = [share(host, hosts, hosts * rows) for host in reversed(range(hosts))]
    parts = [again.batch(step, rows) for rows in shares][::-1]
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    _assert_equal(joined, whole.batch(step))
