"""What is found: BM25 by its formula, pooled states by hand, cuts, budgets, caches, orders."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research import sharding
from research.checkpoints import runs
from research.data.sources import JsonlConfig, ParquetConfig, TextConfig
from research.retrieval import likelihood, measures, models, ranking
from research.retrieval.bm25 import Bm25
from research.retrieval.dense import Dense
from research.retrieval.passages import Chunks, cut, read_passages
from research.retrieval.prompts import count_tokens, fit
from research.retrieval.ranking import Ranking
from research.retrieval.retrieve import Query, retrieve
from research.text.normalize import words_of
from tests.helpers import rounding
from tests.helpers.tiny_run import MODEL

TEXTS = (
    "Red leaves fall on the roof, red and dry.",
    "The roof is green.",
    "Blue roofs are seldom seen in spring.",
    "White walls, white windows and a green door.",
    "Nothing of that.",
)


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return JsonlConfig("notes", str(path))


@pytest.fixture
def tokenizer(world):
    return runs.open_run(world.base).tokenizer


@pytest.fixture
def source(tmp_path):
    return write_jsonl(
        tmp_path / "notes.jsonl", [{"text": t, "id": f"n{i}"} for i, t in enumerate(TEXTS)]
    )


def read(source, tokenizer, cache, tokens=64, overlap=0, id_field=None):
    return read_passages(source, Chunks(tokens, overlap), id_field, tokenizer, cache)


def formula(query, texts, k1, b):
    """BM25 as Lucene has it, term by term."""
    documents = [words_of(text) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for words in documents:
        score = 0.0
        for word in words_of(query):
            having = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            length = k1 * (1 - b + b * len(words) / mean)
            score += idf * words.count(word) / (words.count(word) + length) if having else 0
        scores.append(score)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4)])
def test_bm25_is_its_formula_on_five_passages(source, tokenizer, tmp_path, k1, b):
    passages = read(source, tokenizer, tmp_path / "cache")
    assert passages.texts() == list(TEXTS)
    queries = ["a RED roof, red?", "green door", "unknown words"]
    with Bm25(source, k1=k1, b=b).open(passages, tmp_path / "cache") as searcher:
        scores = searcher.scores(queries)
        alike = searcher.similarity(np.arange(5))
    for row, query in zip(scores, queries, strict=True):
        expected = formula(query, TEXTS, k1, b)
        # float32: a product and a sum a word of at most six
        np.testing.assert_allclose(np.maximum(row, 0), expected, rtol=1e-5)
    assert (scores[2] == -np.inf).all()  # no word in common is nothing to retrieve
    # a text with itself, in float32
    np.testing.assert_allclose(np.diag(alike), 1, rtol=1e-5)
    assert alike[0, 1] > alike[0, 4]


def test_dense_scores_are_cosines_of_states_pooled_by_hand(source, world, tmp_path):
    """Whatever the batch and the padding: each text alone, without any."""
    run = runs.open_run(world.base)
    config = Dense(source, embedder=str(world.base))
    passages = read(source, run.tokenizer, tmp_path / "cache")
    queries = ["red", "the green roof of spring"]
    with config.open(passages, tmp_path / "cache") as searcher:
        scores = searcher.scores(queries)
    model = runs.load_model(run, sharding.MeshConfig().make(), sharding.RULES)

    def pool(text):
        ids = [run.tokenizer.begin_id, *run.tokenizer.encode(text)]
        hidden, _ = forward(model, ids)
        return hidden[1:].mean(axis=0)

    vectors = np.stack([pool(text) for text in TEXTS])
    states = np.stack([pool(text) for text in queries]) - vectors.mean(axis=0)
    vectors -= vectors.mean(axis=0)
    norms = np.linalg.norm(states, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)
    roundings = rounding.forward_roundings(MODEL, 32)
    rounding.assert_close(scores, states @ vectors.T / norms, roundings=roundings)


def test_a_reranker_is_the_likelihood_of_the_question_after_the_passage(world, tmp_path):
    run = runs.open_run(world.base)
    pairs = [("red leaves", "fall on 3 roofs"), ("a longer text of blue leaves and 9 roofs", "x")]
    with models.load_reader(run) as reader:
        scores = likelihood.log_likelihoods(reader, "{text}\n", pairs)
    model = runs.load_model(run, sharding.MeshConfig().make(), sharding.RULES)
    for (text, question), score in zip(pairs, scores, strict=True):
        before, after = run.tokenizer.encode(text + "\n"), run.tokenizer.encode(question)
        _, logits = forward(model, [run.tokenizer.begin_id, *before, *after])
        logs = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
        nats = [logs[len(before) + i, token] for i, token in enumerate(after)]
        roundings = rounding.forward_roundings(MODEL, 64)
        rounding.assert_close(score, np.mean(nats), roundings=roundings)


@jax.jit
def _hidden_and_logits(model, tokens):
    hidden, _ = model.hidden(tokens, jnp.ones_like(tokens), np.arange(64)[None])
    return hidden, model.logits(hidden)


def test_reranked_passages_are_in_the_order_of_their_likelihoods(source, world, tmp_path):
    run = runs.open_run(world.base)
    query = "red roof"
    config = Bm25(source, rerank=likelihood.Likelihood(str(world.base)), chunks=Chunks(64, 0))
    (one,) = retrieve(config, [Query(query)], run.tokenizer, tmp_path / "cache")
    texts = [text for text in TEXTS if {"red", "roof"} & set(words_of(text))]
    with models.load_reader(run) as reader:
        pairs = [(text, query) for text in texts]
        scores = likelihood.log_likelihoods(reader, config.rerank.template, pairs)
    order = [texts[row] for row in np.argsort(-scores)]
    assert [text.partition("\n")[2] for text in one.texts] == order and len(order) == 2


def forward(model, ids):
    """[S,D] last hidden states and [S,V] logits of a text alone; what follows it, it cannot see."""
    tokens = np.zeros((1, 64), np.int32)
    tokens[0, : len(ids)] = ids
    outputs = _hidden_and_logits(model, tokens)
    return (np.asarray(each, np.float64)[0, : len(ids)] for each in outputs)


@settings(deadline=None, max_examples=60)
@given(st.text("ab \n.é漢", max_size=80), st.integers(1, 12), st.data())
def test_cuts_hold_all_tokens_in_stretches_that_are_short_enough(text, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    spans = _character_spans(text)
    stretches = list(cut(text, spans, size, overlap))
    covered = set()
    for start, stop, tokens in stretches:
        inside = [i for i, (a, b) in enumerate(spans) if start <= a and b <= stop]
        assert tokens <= size and len(inside) >= tokens
        covered |= set(inside)
    assert covered == set(range(len(spans)))
    if (
        not text.isascii()
    ):  # a character of several tokens is in all stretches that have one of them
        return
    for (_, stop, _), (start, _, _) in zip(stretches, stretches[1:], strict=False):
        shared = [i for i, (a, _) in enumerate(spans) if start <= a < stop]
        assert len(shared) <= overlap


def _character_spans(text):
    """A token a byte, as byte-level BPE has at worst."""
    places = [(i, i + 1) for i, sign in enumerate(text) for _ in sign.encode()]
    return np.asarray(places, np.int64).reshape(-1, 2)


def test_words_are_not_cut_where_a_passage_has_several(tokenizer):
    text = "red leaves fall on many roofs and blue leaves fall on none of them at all " * 3
    (spans,) = tokenizer.spans([text])
    parts = [text[a:b] for a, b, _ in cut(text, spans, 24, 8)]
    assert len(parts) > 3 and {word for part in parts for word in part.split()} == set(text.split())


def test_a_folder_jsonl_and_parquet_give_the_same_passages(tokenizer, tmp_path):
    records = [{"text": text * 5, "id": f"{i}.md"} for i, text in enumerate(TEXTS)]
    folder = tmp_path / "folder"
    folder.mkdir()
    for record in records:
        (folder / record["id"]).write_text(record["text"])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    sources = [
        TextConfig("notes", str(folder)),
        write_jsonl(tmp_path / "a.jsonl", records),
        ParquetConfig("notes", str(tmp_path / "a.parquet")),
    ]
    tables = [read(each, tokenizer, tmp_path / "cache", 24, 4) for each in sources]
    first, *others = [[table[i] for i in range(len(table))] for table in tables]
    assert first == others[0] == others[1] and len(first) > 10
    assert first[0].id == "0.md#1" and first[0].document == "0.md"
    origins = [table.origin(first[0]).rpartition("/")[2] for table in tables]
    assert origins == ["0.md", "a.jsonl:1", "a.parquet, row 0"]


def test_indexes_are_made_once_for_the_same_content_and_settings(
    source, tokenizer, world, tmp_path
):
    cache = tmp_path / "cache"

    def folders(**changes):
        config = Bm25(source, **{"chunks": Chunks(64, 0)} | changes)
        retrieve(config, [Query("red")], tokenizer, cache)
        return {path.name for path in cache.iterdir()}

    first = folders()
    assert len(first) == 2  # passages, and their index
    assert folders(passages=2, max_tokens=99, measure_at=(1,)) == first
    assert len(folders(b=0.5)) == 3
    assert len(folders(chunks=Chunks(32, 0))) == 5
    write_jsonl(tmp_path / "notes.jsonl", [{"text": "red", "id": "n"}])
    assert len(folders()) == 7
    dense = Dense(source, embedder=str(world.base), chunks=Chunks(64, 0))
    for _ in range(2):
        retrieve(dense, [Query("red")], tokenizer, cache)
        assert len(list(cache.iterdir())) == 8
    assert not [path for path in cache.rglob("*") if path.suffix in (".pkl", ".pickle")]
    (vectors,) = cache.rglob("vectors.npy")
    vectors.write_bytes(vectors.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"dense index of notes:train is damaged \(vectors.npy"):
        retrieve(dense, [Query("red")], tokenizer, cache)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_budget_is_never_exceeded(world, data):
    tokenizer = _tokenizer(world)
    texts = data.draw(st.lists(st.text("red leaf漢\n ", min_size=1, max_size=60), max_size=8))
    config = Bm25(
        JsonlConfig("a", "a"),
        max_tokens=data.draw(st.integers(1, 80)),
        passages=data.draw(st.integers(1, 5)),
        separator=data.draw(st.text("\n ", max_size=3)),
    )
    ranked = Ranking(np.arange(len(texts)), np.zeros(len(texts), np.float32))
    passages = _Listed(texts)
    chosen_passages, written_texts = fit(config, passages, ranked, tokenizer)
    assert len(chosen_passages) == len(written_texts) <= config.passages
    assert count_tokens(config, written_texts, tokenizer) <= config.max_tokens or not written_texts
    if len(written_texts) < min(len(texts), config.passages):  # what is left out did not fit
        for text in set(texts) - {passage.text for passage in chosen_passages}:
            number = len(written_texts) + 1
            more = [*written_texts, f"[{number}] {texts.index(text)}\n{text}"]
            assert count_tokens(config, more, tokenizer) > config.max_tokens


class _Listed(list):
    """Passages in memory."""

    def __getitem__(self, index):
        from research.retrieval.passages import Passage

        return Passage(str(index), str(index), index, super().__getitem__(index), None, 1)

    def origin(self, passage):
        return passage.id


_TOKENIZERS = {}


def _tokenizer(world):
    return _TOKENIZERS.setdefault(world.folder, runs.open_run(world.base).tokenizer)


def test_the_best_are_sorted_and_equal_ones_keep_their_order():
    scores = np.asarray([1, 3, -np.inf, 3, 2, 3], np.float32)
    assert ranking.best(scores, 2).rows.tolist() == [1, 3]
    assert ranking.best(scores, 9).rows.tolist() == [1, 3, 5, 4, 0]
    assert not len(ranking.best(np.full(3, -np.inf), 2).rows)


def test_marginal_relevance_takes_what_is_unlike_before_what_is_alike():
    similarity = np.asarray([[1, 0.99, 0.1], [0.99, 1, 0.1], [0.1, 0.1, 1]])
    relevance = np.asarray([1, 0.9, 0.5])
    assert ranking.marginal_order(relevance, similarity, 0.5) == [0, 2, 1]
    assert ranking.marginal_order(relevance, similarity, 0.0) == [0, 1, 2]


def test_measures_count_documents_not_passages():
    order = ["a", "a", "b", "c"]
    scores = measures.measure(order, {"b", "c"}, (1, 3, 4))
    assert scores == {"recall@1": 0, "recall@3": 0.5, "recall@4": 1, "mrr@4": pytest.approx(1 / 3)}
    assert measures.measure(["x"], {"b"}, (1,)) == {"recall@1": 0, "mrr@1": 0}


def test_diverse_examples_are_not_copies_of_the_nearest(tokenizer, tmp_path):
    records = [
        {"prompt": "red roof in the sun", "completion": "a"},
        {"prompt": "red roof in the sun today", "completion": "b"},
        {"prompt": "red car", "completion": "c"},
    ]
    source = write_jsonl(tmp_path / "a.jsonl", records)

    def ids(diversity):
        config = Bm25(source, passages=2, diversity=diversity)
        (one,) = retrieve(config, [Query("a red roof in the sun")], tokenizer, tmp_path / "cache")
        return one

    assert ids(0.0).ids == ("row 0", "row 1")
    assert ids(0.7).ids == ("row 0", "row 2")
    assert ids(0.0).texts[0] == "[1] row 0\nred roof in the sun\na"


def test_a_question_alone_is_written_as_ever(source, tokenizer, tmp_path):
    config = Bm25(source, passages=1, template="{passages}\n--\n{prompt}")
    (one,) = retrieve(config, [Query("blue spring")], tokenizer, tmp_path / "cache")
    assert one.write("Why {so}?", 1) == f"[1] n2\n{TEXTS[2]}\n--\nWhy {{so}}?"
    assert one.write("Why {so}?", 0) == "Why {so}?"


def test_settings_that_fit_nothing_are_refused(source, tokenizer, tmp_path):
    def ask(*queries, **changes):
        config = dataclasses.replace(Bm25(source), **changes)
        return retrieve(config, queries or [Query("red")], tokenizer, tmp_path / "cache")

    with pytest.raises(ValueError, match=r"template: it has no \{passage\}; did you mean"):
        Bm25(source, template="{passage} {prompt}")
    with pytest.raises(ValueError, match=r"template must have \{prompt\} once, not 0 times"):
        Bm25(source, template="{passages}")
    with pytest.raises(ValueError, match="set `overlap` below `tokens`"):
        Chunks(8, 8)
    with pytest.raises(
        ValueError, match=r"max_tokens=2 holds no passage: the smallest has \d+ tok"
    ):
        ask(max_tokens=2)
    with pytest.raises(ValueError, match="none of 1 questions has a word in common with one of 5"):
        ask(Query("xyz"))
    with pytest.raises(ValueError, match=r"row 3: its right document 'n9' is none of the 5"):
        ask(Query("red", row=3, right=frozenset({"n9"})))
    twice = write_jsonl(tmp_path / "t.jsonl", [{"text": "red", "id": id} for id in ("1", "2", 1)])
    with pytest.raises(ValueError, match=r"t\.jsonl:1 and .*t\.jsonl:3 have one id, '1'"):
        ask(Query("red", right=frozenset({"1"})), source=twice)
    with pytest.raises(ValueError, match=r"retrieval.id_field='name': .* there are: id"):
        ask(id_field="name")
    empty = write_jsonl(tmp_path / "b.jsonl", [{"text": " "}, {"text": ""}])
    with pytest.raises(ValueError, match="nothing to retrieve: its 2 records hold no text"):
        ask(source=empty)
    other = write_jsonl(tmp_path / "c.jsonl", [{"body": "red"}])
    with pytest.raises(ValueError, match="neither 'text' nor 'prompt' .*only .'body'"):
        ask(source=other)
    user, call = {"role": "user", "content": "red"}, {"function": {"name": "f", "arguments": {}}}
    for answer, match in (
        ({"content": None, "tool_calls": [{"type": "function"} | call]}, r"\[1\] has 'tool_calls'"),
        ({"content": "a", "reasoning_content": "b"}, r"\[1\] has 'reasoning_content'"),
        ({"content": "a", "train": False}, "the last answer has weight 0"),
    ):
        talk = {"messages": [user, {"role": "assistant"} | answer]}
        with pytest.raises(ValueError, match=f"row 0: .*{match}"):
            ask(source=write_jsonl(tmp_path / "e.jsonl", [talk]))
    bare = write_jsonl(tmp_path / "d.jsonl", [{"text": "?!"}])
    with pytest.raises(ValueError, match="no passage has a word"):
        ask(source=bare)
