"""A prepared source gives the batches of the text it was made of, bit for bit."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.config import schema
from research.data import overlap
from research.data.config import DataConfig
from research.data.pipeline import Pipeline
from research.data.prepared_tokens import RecordTokens, read_prepared
from research.data.sources import PreparedConfig, open_source
from research.data.token_cache import tokenize
from research.inspection import rows as inspection
from research.objectives import OBJECTIVES as OBJECTIVES_BY_NAME
from research.objectives import Chat, Supervised
from research.text import tokenizer as tokenizers
from tests.objectives import cases
from tests.preparation import corpus

# Some as long as many rows, some empty or of one token.
TEXTS = {
    "made": ["some words. " * n + "are 😀" for n in (1, 9, 2, 40, 3, 1, 5, 70, 4, 2)] + ["", "so"],
    "more": [f"words {n} " * n for n in range(1, 30)],
}
KINDS = ("prepared", "jsonl")
OBJECTIVES = ["causal", "fill_in_the_middle", "prefix_lm", "span_corruption", "masked"]
# Without special tokens for them, markers are spelt, and all tokens are searched for them.
TEXT_MARKERS = {
    "fill_in_the_middle": {"prefix": "\x01", "suffix": "\x02", "middle": "\x03"},
    "span_corruption": {"sentinel": "\x01{number}"},
    "masked": {"mask": "\x01"},
}


@pytest.fixture(scope="module", params=[True, False], ids=["special", "spelt"])
def corpora(request, tmp_path_factory):
    """(folder, tokenizer, whether it has special tokens for markers)"""
    folder = tmp_path_factory.mktemp("made")
    tokenizer = cases.tokenizer(request.param)
    config = corpus.config(folder, TEXTS)
    tokenizer.save(folder / "tokenizer.json")
    corpus.prepare(config, folder / "out")
    return folder, tokenizer, request.param


def _pipeline(corpora, kind, objective, kinds=tuple(TEXTS)):
    folder, tokenizer, special = corpora
    if kind == "prepared":
        sources = [
            PreparedConfig(name, str(folder / "out"), kinds=(name,), weight=i + 1)
            for i, name in enumerate(kinds)
        ]
    else:
        sources = [corpus.source(folder, name, weight=i + 1) for i, name in enumerate(kinds)]
    settings = {} if special else TEXT_MARKERS.get(objective, {})
    config = DataConfig(tuple(sources), 48, 8, OBJECTIVES_BY_NAME[objective](**settings))
    return Pipeline(config, tokenizer, folder / "cache")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_batches_are_those_of_the_text(corpora, objective):
    prepared, direct = (_pipeline(corpora, kind, objective) for kind in ("prepared", "jsonl"))
    for step in (0, 1, 5, 40):
        same = jax.tree.map(np.array_equal, prepared.batch(step), direct.batch(step))
        assert jax.tree.all(same)
    both = [pipeline.statistics(9) for pipeline in (prepared, direct)]
    for name in TEXTS:
        assert both[0][name] == dataclasses.replace(both[1][name], format="prepared")
    heldout = [pipeline.heldout("more", "train") for pipeline in (prepared, direct)]
    assert heldout[0].bytes == heldout[1].bytes and heldout[0].documents == 29


def test_rows_are_compared_by_their_text(corpora):
    folder, tokenizer, _ = corpora
    objective = OBJECTIVES_BY_NAME["causal"]()
    prepared = PreparedConfig("made", str(folder / "out"), kinds=("made",))
    sources = (prepared, corpus.source(folder, "made"))
    hashes = [
        overlap.hash_rows(s, "train", objective, tokenizer, folder / "cache") for s in sources
    ]
    assert np.array_equal(*hashes) and len(hashes[0]) == len(TEXTS["made"])
    rows = [inspection.read_rows(_pipeline(corpora, kind, "causal"), 3) for kind in KINDS]
    assert rows[0] == rows[1] and rows[0][0].segments[0].source.endswith(":train")


def test_all_kinds_together_are_read_in_order(corpora):
    folder, tokenizer, _ = corpora
    source = open_source(PreparedConfig("all", str(folder / "out")))
    table = read_prepared(source, tokenizer, {"text": True})
    texts = [text for texts in TEXTS.values() for text in texts]
    assert len(table) == len(source) == len(texts)
    for i, text in enumerate(texts):
        assert table["text"][i].tolist() == [*tokenizer.encode(text), tokenizer.end_id]
    assert table.bytes["text"].tolist() == [len(text.encode()) for text in texts]
    assert source[len(TEXTS["made"])]["kind"] == "more" and source[-1]["id"] == "d28"
    with pytest.raises(IndexError):
        source[len(texts)]


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """The tokens of one kind in a flat array, and as they are read from records."""
    folder = tmp_path_factory.mktemp("flat")
    corpus.prepare(corpus.config(folder, TEXTS), folder / "out")
    source = open_source(PreparedConfig("made", str(folder / "out"), kinds=("made",)))
    direct = open_source(corpus.source(folder, "made"))
    text = tokenize(direct, corpus.tokenizer(), {"text": True}, folder / "cache")["text"]
    return text.values, RecordTokens(source, text.offsets)


@given(st.data())
def test_tokens_are_taken_as_from_a_flat_array(flat, data):
    array, lazy = flat
    assert len(lazy) == len(array) and lazy.dtype == array.dtype
    places = st.integers(-len(array), len(array) + 3)
    start, stop = data.draw(places), data.draw(places)
    assert np.array_equal(lazy[start:stop], array[start:stop])
    some = np.asarray(data.draw(st.lists(st.integers(0, len(array) - 1), max_size=9)), int)
    assert np.array_equal(lazy[some], array[some])
    assert lazy[-1] == array[-1] and lazy[np.int64(3)] == array[3]
    with pytest.raises(IndexError):
        lazy[len(array)]


def test_another_tokenizer_and_other_objectives_are_refused(corpora):
    folder, tokenizer, _ = corpora
    source = PreparedConfig("made", str(folder / "out"))
    other = tokenizers.train(["other words"], 262)
    with pytest.raises(ValueError, match="prepared with another tokenizer"):
        Pipeline(DataConfig((source,), 48, 8), other, folder / "cache")
    with pytest.raises(ValueError, match=r"not the fields \['completion', 'prompt'\]"):
        Pipeline(DataConfig((source,), 48, 8, Supervised()), tokenizer, folder / "cache")
    with pytest.raises(ValueError, match="it has documents that end with end-of-text"):
        Pipeline(DataConfig((source,), 48, 8, Chat()), tokenizer, folder / "cache")


def test_what_is_not_there_is_said(corpora, tmp_path, monkeypatch):
    folder, _, _ = corpora
    source = PreparedConfig("made", str(folder / "out"))

    def open_changed(split="train", **changes):
        return open_source(dataclasses.replace(source, **changes), split)

    with pytest.raises(ValueError, match="no split 'test', only train"):
        open_changed("test")
    with pytest.raises(ValueError, match="no kind 'mades'; did you mean made"):
        open_changed(kinds=("mades",))
    content = {"name": "made", "kind": "prepared", "path": "x", "label_words": ["a"]}
    with pytest.raises(ValueError, match="has no label_words: its documents are tokens already"):
        schema.build(DataConfig, {"sources": [content], "sequence_length": 8, "batch_size": 1})
    with pytest.raises(FileNotFoundError, match="nothing is prepared in"):
        open_changed(path=str(tmp_path))
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"'made': gs://made/out cannot .*tools/setup buckets"):
        open_changed(path="gs://made/out")


@pytest.mark.parametrize("damage", ["shard", "index", "cut index", "header", "content"])
def test_damaged_data_is_refused(tmp_path, damage):
    corpus.prepare(corpus.config(tmp_path, TEXTS), tmp_path / "out")
    dataset = json.loads((tmp_path / "out" / "prepared.json").read_text())["dataset"]
    folder = tmp_path / "out" / dataset
    index = folder / "index" / "train.tokens.npy"
    if damage == "shard":
        next(folder.glob("*.array_record-00001-*")).unlink()
    elif damage == "index":
        np.save(index, np.load(index)[:-1])
    elif damage == "cut index":
        index.write_bytes(index.read_bytes()[:-3])
    elif damage == "header":  # which numpy reads as Python
        content = index.read_bytes()
        index.write_bytes(content[:32] + bytes(60) + content[92:])
    else:
        (folder / "content.json").write_text("{")
    with pytest.raises(ValueError, match="damaged.*run graft prepare again"):
        open_source(PreparedConfig("made", str(tmp_path / "out")))


@pytest.mark.parametrize("damage", ["flipped", "torn", "emptied", "halved", "info"])
@pytest.mark.parametrize("rows", [1, 300])
def test_a_damaged_record_names_its_file_when_it_is_read(tmp_path, damage, rows):
    texts = [f"words {n} " * 9 for n in range(400)]
    corpus.prepare(corpus.config(tmp_path, {"made": texts}, rows=250), tmp_path / "out")
    file = next((tmp_path / "out" / "stages").glob("tokens-*/*.array_record-00000-of-00002"))
    good = file.read_bytes()
    middle = good[:9999] + bytes([good[9999] ^ 255]) + good[10000:]
    half = good[: len(good) // 2]
    bad = {"flipped": middle, "torn": good[:-3], "emptied": b"", "halved": half, "info": good}
    file.write_bytes(bad[damage])
    if damage == "info":
        (file.parent / "dataset_info.json").write_text("{")
    source = open_source(PreparedConfig("made", str(tmp_path / "out")))
    file_name = "tokens-[0-9a-f]*" if damage == "info" else file.name
    message = rf"'made:train': .*{file_name} is damaged \(.*run graft prepare again"
    with pytest.raises(ValueError, match=message):
        for start in range(0, 400, rows):
            source.tokens(range(start, min(400, start + rows)))


@pytest.mark.parametrize("name", ["tokens", "bytes"])
def test_an_index_of_other_lengths_is_refused(tmp_path, name):
    corpus.prepare(corpus.config(tmp_path, TEXTS), tmp_path / "out")
    dataset = json.loads((tmp_path / "out" / "prepared.json").read_text())["dataset"]
    index = tmp_path / "out" / dataset / "index" / f"train.{name}.npy"
    np.save(index, np.load(index)[::-1])
    with pytest.raises(ValueError, match=rf"index/train\.{name}\.npy is not what was written"):
        open_source(PreparedConfig("made", str(tmp_path / "out")))


def test_an_index_without_checksum_is_found_out_when_a_document_is_read(tmp_path):
    corpus.prepare(corpus.config(tmp_path, TEXTS), tmp_path / "out")
    dataset = json.loads((tmp_path / "out" / "prepared.json").read_text())["dataset"]
    content_file = tmp_path / "out" / dataset / "content.json"
    content = json.loads(content_file.read_text())
    for about in content["splits"].values():  # as data prepared before
        del about["index"]
    content_file.write_text(json.dumps(content))
    index = tmp_path / "out" / dataset / "index" / "train.tokens.npy"
    lengths = np.load(index)
    np.save(index, lengths[::-1])
    table = read_prepared(
        open_source(PreparedConfig("made", str(tmp_path / "out"))),
        corpus.tokenizer(),
        {"text": True},
    )
    with pytest.raises(ValueError, match="row 3: .* tokens, but the index says another number"):
        table["text"][3]
    with pytest.raises(ValueError, match="row 0: .* tokens, but the index says another number"):
        table["text"].values[0 : int(lengths[::-1][:4].sum())]
    starts = np.cumsum(lengths[::-1], dtype=np.int64)
    with pytest.raises(ValueError, match="tokens, but the index says another number"):
        table["text"].stretches(starts[:4], starts[:4] + 1)
    lengths[0] += 1
    np.save(index, lengths)
    with pytest.raises(ValueError, match="train.tokens.npy is not what was written"):
        open_source(PreparedConfig("made", str(tmp_path / "out")))


def test_the_fingerprint_follows_the_content_and_the_kinds(tmp_path):
    config = corpus.config(tmp_path, TEXTS)
    corpus.prepare(config, tmp_path / "one")
    corpus.prepare(corpus.replace(config, rows=3), tmp_path / "two")
    other = corpus.replace(config, sources=config.sources[::-1])
    corpus.prepare(other, tmp_path / "three")

    def fingerprint(folder, *kinds):
        source = PreparedConfig("x", str(tmp_path / folder), kinds=kinds)
        return open_source(source).fingerprint

    assert fingerprint("one") == fingerprint("two") != fingerprint("three")
    assert len({fingerprint("one"), fingerprint("one", "made"), fingerprint("one", "more")}) == 3
