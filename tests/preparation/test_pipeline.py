"""Stages are made once, made anew when what they depend on changes, and never trusted blindly."""

import json
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from research.config import schema
from research.data.sources import JsonlConfig
from research.preparation import documents, pipeline, statistics
from research.preparation.config import PreparationConfig, Quality
from research.preparation.documents import RowRanges, SourceSplit
from research.preparation.output import Shards
from research.preparation.runner import Runner
from tests.preparation import corpus

TEXTS = {
    "prose": [corpus.prose(seed) for seed in range(18)] + ["too short"] * 2,
    "notes": [corpus.prose(seed, 60) for seed in range(30, 39)],
}


@pytest.fixture
def config(tmp_path):
    return corpus.config(tmp_path, TEXTS, quality=Quality())


def _stages_run(log_lines):
    """Names of the stages that were not there already."""
    return [line.partition("-")[0] for line in log_lines if line.endswith(" s")]


def test_documents_keep_their_order_names_and_kinds_and_tfds_reads_them(config, tmp_path):
    numbers, log_lines = corpus.prepare(config, tmp_path / "out")
    expected_names = [f"prose/d{i}" for i in range(18)] + [f"notes/d{i}" for i in range(9)]
    assert corpus.kept_names(tmp_path / "out") == expected_names
    assert _stages_run(log_lines) == ["documents", "quality", "tokens"]
    dataset = json.loads((tmp_path / "out" / "prepared.json").read_text())["dataset"]
    builder = tfds.builder_from_directory(tmp_path / "out" / dataset)
    rows = list(builder.as_data_source("train"))
    assert [row["id"].decode() for row in rows] == [name.split("/")[1] for name in expected_names]
    tokenizer = corpus.tokenizer()
    texts = [*TEXTS["prose"][:18], *TEXTS["notes"]]
    for row, text in zip(rows, texts, strict=True):
        tokens = np.frombuffer(row["tokens"], "<u2").tolist()
        assert tokens == [*tokenizer.encode(text), tokenizer.end_id] and row["bytes"] == len(
            text.encode()
        )
    lengths = np.load(tmp_path / "out" / dataset / "index" / "train.tokens.npy")
    assert lengths.tolist() == [len(tokenizer.encode(text)) + 1 for text in texts]
    prose = numbers["train"]["prose"]
    assert (prose["documents"], prose["kept"]["documents"]) == (20, 18)
    assert prose["removed"]["quality"]["words"] == 2 and prose["removed_bytes"] == 18
    assert prose["kept"]["tokens"] == lengths[:18].sum()
    assert prose["kept"]["tokens_quantiles"]["100%"] == lengths[:18].max()


def test_a_second_run_does_nothing_and_says_so(config, tmp_path):
    out = tmp_path / "out"
    corpus.prepare(config, out)
    before = corpus.content(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    _, log_lines = corpus.prepare(config, out)
    assert (
        _stages_run(log_lines) == []
        and log_lines[-1] == f"{out}: nothing to do, all of it was there."
    )
    assert corpus.content(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")} == times


def test_a_change_makes_anew_what_depends_on_it_and_nothing_else(config, tmp_path):
    out = tmp_path / "out"
    corpus.prepare(config, out)
    lax = corpus.replace(config, quality=Quality(min_words=1, min_stop_words=0))
    _, log_lines = corpus.prepare(lax, out)
    assert _stages_run(log_lines) == ["quality", "tokens"] and len(corpus.kept_names(out)) == 29
    _, log_lines = corpus.prepare(config, out)  # what it had made is there still
    assert (
        _stages_run(log_lines) == []
        and len(corpus.kept_names(out)) == 27
        and "prepared." in log_lines[-1]
    )
    corpus.write(tmp_path / "notes.train.jsonl", TEXTS["notes"][::-1])
    _, log_lines = corpus.prepare(config, out)
    assert _stages_run(log_lines) == ["documents", "quality", "tokens"]
    corpus.tokenizer().save(tmp_path / "copy.json")
    _, log_lines = corpus.prepare(
        corpus.replace(config, tokenizer=str(tmp_path / "copy.json")), out
    )
    assert _stages_run(log_lines) == []  # the same tokenizer elsewhere


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_how_rows_are_cut_changes_nothing_but_the_files(config, tmp_path, rows):
    corpus.prepare(config, tmp_path / "out")
    corpus.prepare(corpus.replace(config, rows=rows), tmp_path / "other")
    assert corpus.kept_names(tmp_path / "other") == corpus.kept_names(tmp_path / "out")
    datasets = [
        json.loads((tmp_path / each / "prepared.json").read_text())["dataset"]
        for each in ("out", "other")
    ]
    contents = [
        json.loads((tmp_path / each / dataset / "content.json").read_text())
        for each, dataset in zip(("out", "other"), datasets, strict=True)
    ]
    assert contents[0] == contents[1] and datasets[0] != datasets[1]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 30)), min_size=1), st.integers(1, 40))
def test_ranges_and_files_hold_every_document_once_in_order(sizes, rows):
    source = JsonlConfig("made", "made.jsonl")
    sizes = sorted(sizes)  # the parts of a split lie together
    parts = tuple(SourceSplit(source, "ab"[split], "", size) for split, size in sizes)
    ranges = RowRanges(parts, rows)
    documents_in_ranges = [
        (each.first + i, each.source_split, each.start + i)
        for each in ranges
        for i in range(len(each))
    ]
    expected_rows = [(part, row) for part in parts for row in range(part.rows)]
    assert documents_in_ranges == [(number, *place) for number, place in enumerate(expected_rows)]
    assert ranges.documents == len(documents_in_ranges) and all(
        len(each) <= rows for each in ranges
    )
    assert ranges.firsts.tolist() == [each.first for each in ranges]
    kept_counts = np.asarray([len(each) // 2 for each in ranges])
    shards = Shards(ranges, kept_counts)
    assert [shard.range.number for shard in shards] == np.flatnonzero(kept_counts).tolist()
    for split in "ab":
        own = [shard for shard in shards if shard.range.source_split.split == split]
        assert [shard.index for shard in own] == list(range(len(own)))
        assert all(shard.count == len(own) for shard in own)
        before = np.cumsum([0, *(shard.documents for shard in own)])
        assert [shard.first for shard in own] == before[:-1].tolist()


def test_splits_keep_their_names_and_the_first_one_is_first(tmp_path):
    config = corpus.config(tmp_path, TEXTS)
    for kind, texts in TEXTS.items():
        corpus.write(tmp_path / f"{kind}.heldout.jsonl", texts[::3])
    config = corpus.replace(config, splits=("heldout", "train"))
    numbers, _ = corpus.prepare(config, tmp_path / "out")
    assert list(numbers) == ["heldout", "train"]
    assert len(corpus.kept_names(tmp_path / "out", split="heldout")) == 10
    assert len(corpus.kept_names(tmp_path / "out")) == 29


@pytest.mark.parametrize("damage", ["cut", "lost", "changed", "added", "unmarked", "marker"])
def test_torn_and_foreign_files_are_made_again(config, tmp_path, damage):
    out = tmp_path / "out"
    corpus.prepare(config, out)
    good = corpus.content(out)
    (stage,) = (out / "stages").glob("quality-*")
    file = stage / "000001.npy"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "lost":
        file.unlink()
    elif damage == "changed":
        file.write_bytes(file.read_bytes()[:-1] + b"\1")
    elif damage == "added":
        (stage / "000009.npy").write_bytes(file.read_bytes())
    elif damage == "unmarked":
        (stage / "done.json").unlink()
    else:
        (stage / "done.json").write_text('{"depends": {}, "files": {}}')
    _, log_lines = corpus.prepare(config, out)
    assert any(line.startswith("quality") and "made again" in line for line in log_lines)
    assert corpus.content(out) == good


def test_a_folder_of_something_else_is_refused(config, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("text")
    with pytest.raises(ValueError, match="thesis holds other files"):
        corpus.prepare(config, tmp_path / "thesis")
    with pytest.raises(ValueError, match="is a file"):
        corpus.prepare(config, tmp_path / "thesis" / "chapter1.txt")


def test_a_bucket_without_its_package_is_refused_and_says_how_to_install_it(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"gs://made/out cannot be opened.*tools/setup buckets"):
        pipeline.make_plan(config, "gs://made/out")


class _Full(corpus.SerialRunner):
    """Has room for the first stage only."""

    def for_each(self, items, work):
        if work.func is not documents.measure_documents:
            with open("/dev/full", "wb", buffering=0) as file:
                file.write(b"more")
        super().for_each(items, work)


def test_a_full_disk_says_what_to_do_and_what_is_finished_is_kept(config, tmp_path):
    message = "out: .*No space left on device: what is finished is kept; make room and run the same"
    with pytest.raises(OSError, match=message):
        corpus.prepare(config, tmp_path / "out", _Full())
    _, log_lines = corpus.prepare(config, tmp_path / "out")
    assert _stages_run(log_lines) == ["quality", "tokens"]


def test_two_processes_do_not_prepare_one_folder(config, tmp_path):
    (tmp_path / "out").mkdir()
    with (
        pipeline._lock_folder(str(tmp_path / "out")),
        pytest.raises(ValueError, match="being prepared by another process"),
    ):
        corpus.prepare(config, tmp_path / "out")


def test_a_broken_line_is_named_and_a_share_of_them_is_left_out(tmp_path):
    config = corpus.config(tmp_path, TEXTS)
    with (tmp_path / "notes.train.jsonl").open("a") as file:
        file.write('{"text": 7}\n')
    with pytest.raises(ValueError, match=r"notes.train.jsonl:10.*'text' must be text, not int"):
        corpus.prepare(config, tmp_path / "out")
    sources = (config.sources[0], corpus.source(tmp_path, "notes", bad_lines=0.2, format="text"))
    numbers, log_lines = corpus.prepare(corpus.replace(config, sources=sources), tmp_path / "out")
    assert "bad lines left out: notes, train: 1" in log_lines[-2]
    assert numbers["train"]["notes"]["bad_lines"] == 1
    assert numbers["train"]["notes"]["kept"]["documents"] == 9


def test_what_one_setting_let_pass_is_not_prepared_without_it(tmp_path):
    config = corpus.config(tmp_path, TEXTS)
    with (tmp_path / "notes.train.jsonl").open("a") as file:
        file.write('{"text": "some more words", "weight": 0}\n')
    source = corpus.source(tmp_path, "notes", unused_fields=("weight",))
    corpus.prepare(corpus.replace(config, sources=(config.sources[0], source)), tmp_path / "out")
    with pytest.raises(ValueError, match=r"notes.train.jsonl:10.*'weight' .*would be lost"):
        corpus.prepare(config, tmp_path / "out")


def test_a_split_of_which_nothing_is_left_is_an_error(tmp_path):
    config = corpus.config(tmp_path, {"prose": ["short"]}, quality=Quality())
    message = "'train' is left. Of 1, these were removed: quality: words 1.$"
    with pytest.raises(ValueError, match=message):
        corpus.prepare(config, tmp_path / "out")


def test_the_plan_says_what_is_there_and_writes_nothing(config, tmp_path):
    description = pipeline.describe_plan(pipeline.make_plan(config, tmp_path / "out"))
    assert "prose, train: 20 rows" in description and "29 documents in 5 ranges" in description
    assert description.count("to do") == 3 and not (tmp_path / "out").exists()
    corpus.prepare(config, tmp_path / "out")
    description = pipeline.describe_plan(pipeline.make_plan(config, tmp_path / "out"))
    assert description.count("there already") == 3 and "to do" not in description


def test_rules_do_not_judge_what_is_exempt(config, tmp_path):
    exempt = corpus.replace(config, quality=Quality(exempt=("prose",)))
    corpus.prepare(exempt, tmp_path / "out")
    assert len(corpus.kept_names(tmp_path / "out")) == 29


def test_without_beam_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match="apache_beam is not there: run `tools/setup prepare`"):
        Runner()


def test_wrong_configs_are_refused():
    source = JsonlConfig("prose", "prose.jsonl")

    def build(**changes):
        fields = {"sources": [schema.to_dict(source)], "tokenizer": "t.json", **changes}
        return schema.build(PreparationConfig, fields)

    for changes, message in (
        ({"sources": [{"name": "code", "kinds": ["c"]}]}, "only what was prepared has"),
        ({"sources": []}, "At least one source"),
        ({"sources": [schema.to_dict(source)] * 2}, "'prose' is listed twice"),
        ({"splits": ["train", "train"]}, "'train' is listed twice"),
        ({"splits": ["train[:5]"]}, "cannot be the name of a split"),
        ({"quality": {"exempt": ["code"]}}, "no source is named 'code'"),
        ({"near_duplicates": {"threshold": 0}}, "near_duplicates.threshold"),
        ({"contamination": {"evaluations": []}}, "at least one source of examples"),
        ({"near_duplicate": None}, "did you mean config.near_duplicates"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**changes)


def test_quantiles_are_the_nearest_ranks(monkeypatch):
    monkeypatch.setattr(statistics, "_BLOCK", 7)
    lengths = np.random.default_rng(0).integers(1, 90, 101).astype(np.uint32)
    sorted_lengths = np.sort(lengths).tolist()
    expected = {
        "0%": sorted_lengths[0],
        "10%": sorted_lengths[10],
        "50%": sorted_lengths[50],
        "90%": sorted_lengths[90],
    }
    assert statistics.quantiles(lengths) == expected | {"100%": sorted_lengths[100]}
