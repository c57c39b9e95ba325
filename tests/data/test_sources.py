"""Sources and their tokenized cache."""

import json

import numpy as np
import pytest

from research.config import schema
from research.data.config import DataConfig
from research.data.sources import KINDS, JsonlConfig, TextConfig, open_source
from research.data.token_cache import tokenize
from research.text import tokenizer as tokenizer_lib


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_lib.train(["some words and other words " * 9], 300)


def _write(path, lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_jsonl_gives_its_lines_in_order_and_skips_empty_ones(tmp_path):
    lines = [json.dumps({"text": "ä"}, ensure_ascii=False), "", json.dumps({"text": "b", "n": 2})]
    path = _write(tmp_path / "a.jsonl", lines)
    source = open_source(JsonlConfig("a", str(path)))
    assert [source[i] for i in range(len(source))] == [{"text": "ä"}, {"text": "b", "n": 2}]


@pytest.mark.parametrize("line", ['{"text": "b"', "[1]", '{"text": "\\x"}'])
def test_a_broken_jsonl_line_names_file_and_line(tmp_path, tokenizer, line):
    path = _write(tmp_path / "bad.jsonl", ['{"text": "a"}', "", line])
    source = open_source(JsonlConfig("bad", str(path)))
    with pytest.raises(ValueError, match=r"bad\.jsonl:3: "):
        tokenize(source, tokenizer, {"text": True}, tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").iterdir()], "nothing half-written is left"


def test_text_that_is_not_utf8_names_its_file(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe")
    source = open_source(TextConfig("folder", str(tmp_path)))
    with pytest.raises(ValueError, match=r"x\.txt: not UTF-8"):
        source[0]


def test_a_folder_gives_its_files_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.md").write_text("one", encoding="utf-8")
    (tmp_path / "a.txt").write_bytes("zwei ü\r\n".encode())
    (tmp_path / "c.png").write_bytes(b"\xff")
    source = open_source(TextConfig("folder", str(tmp_path)))
    assert [source[i] for i in range(len(source))] == [
        {"text": "zwei ü\r\n", "id": "a.txt"},
        {"text": "one", "id": "b/1.md"},
    ]


def test_fields_are_renamed_and_a_missing_one_names_the_nearest(tmp_path):
    path = _write(tmp_path / "a.jsonl", ['{"notice": "n", "key": "k"}'])
    fields = {"prompt": "notice", "completion": "key"}
    config = JsonlConfig("a", str(path), fields=fields)
    assert open_source(config)[0] == {"prompt": "n", "completion": "k"}
    config = JsonlConfig("a", str(path), fields={"prompt": "notic"})
    with pytest.raises(ValueError, match=r"a\.jsonl:1.*did you mean notice"):
        open_source(config)[0]


def test_a_split_is_a_file_of_its_own_and_never_the_training_file(tmp_path):
    _write(tmp_path / "train.jsonl", ['{"text": "a"}'])
    _write(tmp_path / "test.jsonl", ['{"text": "b"}'])
    both = JsonlConfig("a", str(tmp_path / "{split}.jsonl"))
    assert open_source(both, "test")[0] == {"text": "b"}
    only = JsonlConfig("a", str(tmp_path / "train.jsonl"))
    with pytest.raises(ValueError, match="has only the split 'train'"):
        open_source(only, "test")


def test_wrong_kind_and_missing_files_are_named(tmp_path):
    def build(**content):
        data = {"sources": [{"name": "a", **content}], "sequence_length": 8, "batch_size": 1}
        return schema.build(DataConfig, data)

    wrong_kind = r"config\.sources\[0\]\.kind: there is no 'json'; did you mean jsonl"
    with pytest.raises(ValueError, match=wrong_kind):
        build(kind="json", path="x")
    with pytest.raises(FileNotFoundError, match="no file"):
        open_source(JsonlConfig("a", str(tmp_path / "none.jsonl")))
    with pytest.raises(FileNotFoundError, match="no .txt or .md"):
        open_source(TextConfig("a", str(tmp_path)))
    with pytest.raises(ValueError, match=r"config\.sources\[0\]\.path: missing"):
        build(kind="jsonl")


class Counted:
    """An in-memory source that counts how often it is read."""

    name, format, acceptance = "counted", "text", {}

    def __init__(self, texts, fingerprint):
        self.texts = texts
        self.fingerprint = fingerprint
        self.reads = 0

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        self.reads += 1
        return {"text": self.texts[index]}


def test_a_cached_source_is_not_read_again_and_is_the_same(tmp_path, tokenizer):
    texts = ["some words", "", "wörter 😀"]
    first = Counted(texts, "one")
    table = tokenize(first, tokenizer, {"text": True}, tmp_path)
    second = Counted(texts, "one")
    again = tokenize(second, tokenizer, {"text": True}, tmp_path)
    assert (first.reads, second.reads) == (3, 0)
    for t in (table, again):
        assert [tokenizer.decode(t["text"][i]) for i in range(3)] == texts
        assert all(t["text"][i][-1] == tokenizer.end_id for i in range(3))
        assert t.bytes["text"].tolist() == [len(text.encode()) for text in texts]
        assert t["text"].values.dtype == np.uint16
    assert isinstance(again["text"].values.base, np.memmap), "mapped, not read"


@pytest.mark.parametrize(
    ("odd_line", "settings", "message"),
    [
        (
            '{"prompt": "q", "completion": "a", "train": false}',
            {"unused_fields": ("train",)},
            "lost",
        ),
        ('{"prompt": "q", "comp', {"bad_lines": 0.5}, "not a line of JSON"),
        ('{"text": "a", "weight": 0}', {"unused_fields": ("we.*",)}, "lost"),
        ('{"text": "a', {"bad_lines": 0.5}, "not a line of JSON"),
    ],
)
def test_what_one_setting_let_pass_is_refused_again_without_it(
    tmp_path, tokenizer, odd_line, settings, message
):
    """Also where its tokens are in the cache; what identifies the data stays the same."""
    good = {"text": "words"} if '"text"' in odd_line else {"prompt": "one", "completion": "two"}
    path = _write(tmp_path / "a.jsonl", [json.dumps(good), odd_line])
    fields = dict.fromkeys(good, False)
    lenient = open_source(JsonlConfig("a", str(path), **settings))
    tokenize(lenient, tokenizer, fields, tmp_path / "cache")
    strict = open_source(JsonlConfig("a", str(path)))
    with pytest.raises(ValueError, match=rf"a\.jsonl:2: .*{message}"):
        tokenize(strict, tokenizer, fields, tmp_path / "cache")
    assert strict.fingerprint == lenient.fingerprint


def test_another_content_tokenizer_or_field_is_another_cache(tmp_path, tokenizer):
    tokenize(Counted(["a"], "one"), tokenizer, {"text": True}, tmp_path)
    other = tokenizer_lib.train(["other things " * 9], 290)
    for source, made_by, fields in (
        (Counted(["b"], "two"), tokenizer, {"text": True}),
        (Counted(["a"], "one"), other, {"text": True}),
        (Counted(["a"], "one"), tokenizer, {"text": False}),
    ):
        tokenize(source, made_by, fields, tmp_path)
        assert source.reads == 1


def test_tokenising_in_chunks_equals_tokenising_at_once(tmp_path, tokenizer, monkeypatch):
    texts = [f"some words {i} " * (i % 7) for i in range(50)]
    whole = tokenize(Counted(texts, "x"), tokenizer, {"text": True}, tmp_path / "a")
    monkeypatch.setattr("research.data.token_cache._CHUNK", 100)
    parts = tokenize(Counted(texts, "x"), tokenizer, {"text": True}, tmp_path / "b")
    assert np.array_equal(whole["text"].values, parts["text"].values)
    assert np.array_equal(whole["text"].offsets, parts["text"].offsets)


def test_a_damaged_cache_is_an_error_that_names_its_folder(tmp_path, tokenizer):
    tokenize(Counted(["some words"], "x"), tokenizer, {"text": True}, tmp_path)
    file = next(tmp_path.glob("*/text.tokens.npy"))
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ValueError, match=f"damaged.*{file.parent.name}"):
        tokenize(Counted(["some words"], "x"), tokenizer, {"text": True}, tmp_path)


def test_a_missing_or_non_text_field_names_source_and_row(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="counted, row 0: there is no field 'prompt'"):
        tokenize(Counted(["a"], "x"), tokenizer, {"prompt": False}, tmp_path)
    with pytest.raises(ValueError, match="counted, row 1: field 'text' must be text, not int"):
        tokenize(Counted(["a", 3], "x"), tokenizer, {"text": True}, tmp_path)
    with pytest.raises(ValueError, match="rows 0 to 0, field 'text': .*no Unicode"):
        tokenize(Counted(["\ud800"], "x"), tokenizer, {"text": True}, tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "text"])
def test_the_fingerprint_follows_the_content(tmp_path, kind):
    path = tmp_path / "a.txt"
    config = KINDS[kind]("a", str(path if kind == "jsonl" else tmp_path))
    path.write_text('{"text": "a"}')
    first = open_source(config).fingerprint
    assert open_source(config).fingerprint == first
    path.write_text('{"text": "b"}')
    assert open_source(config).fingerprint != first


def test_fingerprints_stay_what_they_were(tmp_path):
    """A change would tokenize every corpus again, and refuse to resume every run."""
    _write(tmp_path / "x.jsonl", ['{"text":"a"}', "", '{"text":"b","n":1}'])
    (tmp_path / "t" / "a").mkdir(parents=True)
    (tmp_path / "t" / "a" / "b.txt").write_text("x")
    (tmp_path / "t" / "a.txt").write_text("y")
    fields = {"prompt": "text"}
    path = str(tmp_path / "x.jsonl")
    assert [
        open_source(config).fingerprint[:8]
        for config in (
            JsonlConfig("a", path),
            JsonlConfig("a", path, fields=fields),
            TextConfig("a", str(tmp_path / "t")),
        )
    ] == ["50f34b07", "dd16a982", "7303fce4"]


def test_a_folder_of_text_leaves_out_hidden_files_and_marks_of_byte_order(tmp_path):
    (tmp_path / "a.TXT").write_bytes("\ufeffmarked".encode())
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "b.txt").write_text("hidden")
    source = open_source(TextConfig("made", str(tmp_path)))
    assert [source[i] for i in range(len(source))] == [{"text": "marked", "id": "a.TXT"}]
