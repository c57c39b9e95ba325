"""Files open alike on a disk and in a bucket, plain or compressed, one or several."""

import gzip
import json
import os
import re

import fsspec
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from research.data.sources import (
    KINDS,
    CsvConfig,
    JsonlConfig,
    ParquetConfig,
    TextConfig,
    files,
    open_source,
)
from research.runtime import expansion

ROWS = [{"text": f"words {i}", "n": i} for i in range(7)]


def copies(folder):
    """The copies in the cache, without their checksums."""
    return [path for path in folder.iterdir() if path.suffix != ".crc32"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "files"


@pytest.fixture
def bucket():
    """A bucket in memory, as a path and a function that writes a file of it."""
    system = fsspec.filesystem("memory")
    yield "memory://bucket", lambda name, content: system.pipe(f"/bucket/{name}", content)
    system.rm("/bucket", recursive=True)


def _lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _zst(content: bytes) -> bytes:
    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return out.getvalue().to_pybytes()


COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": _zst}


def _read(path, kind="jsonl"):
    source = open_source(KINDS[kind]("a", str(path)))
    return [source[i] for i in range(len(source))]


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_source_is_the_same_however_it_is_kept(tmp_path, bucket, ending):
    where, put = bucket
    content = COMPRESS[ending](_lines(ROWS))
    (tmp_path / "plain.jsonl").write_bytes(_lines(ROWS))
    (tmp_path / f"a.jsonl{ending}").write_bytes(content)
    put(f"a.jsonl{ending}", content)
    plain = open_source(JsonlConfig("a", str(tmp_path / "plain.jsonl")))
    for path in (f"{tmp_path}/a.jsonl{ending}", f"{where}/a.jsonl{ending}"):
        source = open_source(JsonlConfig("a", path))
        assert [source[i] for i in (3, 0, 6, -1)] == [ROWS[i] for i in (3, 0, 6, -1)]
        assert source.fingerprint == plain.fingerprint


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5), st.sampled_from([".gz", ".zst"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_copy_holds_the_same_bytes_also_of_joined_streams(tmp_path, parts, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"".join(COMPRESS[ending](part) for part in parts))
    copy = files.local_copy(files.File(fsspec.filesystem("file"), str(path), "a"))
    assert copy.read_bytes() == b"".join(parts)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_compressed_file_is_unpacked_once_and_again_when_it_changes(tmp_path, cache, ending):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(COMPRESS[ending](_lines(ROWS)))
    assert _read(path) == _read(path) == ROWS
    assert len(copies(cache)) == 1
    path.write_bytes(COMPRESS[ending](_lines(ROWS[:2])))
    assert _read(path) == ROWS[:2]
    assert len(copies(cache)) == 2


def test_a_copy_that_has_changed_is_named_and_without_its_checksum_made_again(tmp_path, cache):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(COMPRESS[".gz"](_lines(ROWS)))
    assert _read(path) == ROWS
    (copy,) = copies(cache)
    checksum = copy.with_suffix(".crc32").read_text()
    copy.write_bytes(copy.read_bytes().replace(b"1", b"2"))
    with pytest.raises(
        ValueError, match=rf"{copy.name}, the plain copy of .*a\.jsonl\.gz.*remove it"
    ):
        _read(path)
    copy.with_suffix(".crc32").unlink()
    assert _read(path) == ROWS and copy.with_suffix(".crc32").read_text() == checksum
    copy.unlink()
    assert _read(path) == ROWS


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_an_empty_file_is_no_compressed_one_and_one_that_holds_nothing_is(tmp_path, bucket, ending):
    where, put = bucket
    for name, content in (("1.jsonl", COMPRESS[ending](_lines(ROWS))), ("2.jsonl", b"")):
        (tmp_path / f"{name}{ending}").write_bytes(content)
        put(f"{name}{ending}", content)
    for place in (tmp_path, where):
        with pytest.raises(ValueError, match=rf"2\.jsonl\{ending}: cut short: it is empty, and no"):
            _read(f"{place}/*.jsonl{ending}")
    (tmp_path / f"2.jsonl{ending}").write_bytes(COMPRESS[ending](b""))
    assert _read(tmp_path / f"*.jsonl{ending}") == ROWS


def test_a_file_in_a_bucket_is_fetched_once_and_again_when_it_changes(bucket, cache, monkeypatch):
    where, put = bucket
    put("a.jsonl", _lines(ROWS))
    assert _read(f"{where}/a.jsonl") == ROWS
    system = fsspec.filesystem("memory")
    with monkeypatch.context() as patch:
        patch.setattr(type(system), "_open", lambda *_, **__: pytest.fail("fetched again"))
        assert _read(f"{where}/a.jsonl") == ROWS
    put("a.jsonl", _lines(ROWS[:3]))
    assert _read(f"{where}/a.jsonl") == ROWS[:3]
    assert len(copies(cache)) == 2


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize(
    "damage", [lambda b: b[:-5], lambda b: b + b"junk", lambda b: _lines(ROWS)]
)
def test_a_damaged_compressed_file_is_named_and_leaves_nothing(tmp_path, cache, ending, damage):
    (tmp_path / f"a.jsonl{ending}").write_bytes(damage(COMPRESS[ending](_lines(ROWS))))
    with pytest.raises(ValueError, match=rf"a\.jsonl\{ending}: cut short, or no "):
        _read(tmp_path / f"a.jsonl{ending}")
    assert not copies(cache)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_file_that_unpacks_to_too_much_is_refused_and_leaves_nothing(
    tmp_path, cache, ending, monkeypatch
):
    monkeypatch.setattr(expansion, "ALWAYS", 2**20)
    line = json.dumps({"text": "a" * 2**23}).encode()
    (tmp_path / f"a.jsonl{ending}").write_bytes(COMPRESS[ending](line))
    with pytest.raises(
        expansion.ExpansionError, match=rf"a\.jsonl\{ending}: .* set GRAFT_MAX_EXPANSION"
    ):
        _read(tmp_path / f"a.jsonl{ending}")
    assert not list(cache.iterdir())
    monkeypatch.setenv("GRAFT_MAX_EXPANSION", "99999")
    assert len(_read(tmp_path / f"a.jsonl{ending}")) == 1


def test_a_pattern_gives_all_its_files_in_the_order_of_their_names(tmp_path, bucket):
    where, put = bucket
    for name, rows in (("part-1.jsonl", ROWS[:2]), ("part-2.jsonl.gz", ROWS[2:5])):
        content = COMPRESS[".gz" if name.endswith("gz") else ""](_lines(rows))
        (tmp_path / name).write_bytes(content)
        put(name, content)
    (tmp_path / "part-3.jsonl").write_bytes(b"")
    (tmp_path / "other.jsonl").write_bytes(_lines(ROWS))
    (tmp_path / "part-0.jsonl").mkdir()
    assert _read(tmp_path / "part-*.jsonl*") == _read(f"{where}/part-*.jsonl*") == ROWS[:5]
    with pytest.raises(FileNotFoundError, match=r"no file fits the pattern .*/none-\*\.jsonl"):
        _read(tmp_path / "none-*.jsonl")


@pytest.mark.parametrize("copy", ["~", ".bak", ".swp", ".tmp", ".orig", ".gz"])
def test_a_pattern_that_fits_a_file_twice_is_refused_and_several_files_are_counted(tmp_path, copy):
    for name in ("train-1.jsonl", "train-2.jsonl"):
        (tmp_path / name).write_bytes(_lines(ROWS[:2]))
    assert JsonlConfig("a", str(tmp_path / "train*")).open("train").note == "2 files"
    assert JsonlConfig("a", str(tmp_path / "train-1*")).open("train").note == ""
    (tmp_path / f"train-1.jsonl{copy}").write_bytes(COMPRESS.get(copy, bytes)(_lines(ROWS[:2])))
    with pytest.raises(ValueError, match=rf"its pattern fits .*train-1\.jsonl{re.escape(copy)},"):
        _read(tmp_path / "train*")
    assert _read(tmp_path / f"train*{copy}") == _read(tmp_path / f"train-1.jsonl{copy}") == ROWS[:2]


def test_a_name_with_a_patterns_signs_is_a_file_if_there_is_one(tmp_path):
    (tmp_path / "a[1].jsonl").write_bytes(_lines(ROWS))
    (tmp_path / "a1.jsonl").write_bytes(_lines(ROWS[:1]))
    assert _read(tmp_path / "a[1].jsonl") == ROWS


def test_what_a_folder_of_texts_would_pass_over_is_refused_and_links_are_followed(tmp_path):
    folder, elsewhere = tmp_path / "texts", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "a.txt").write_text("a")
    (elsewhere / "b").write_text("b")
    (folder / "b.txt").symlink_to(elsewhere / "b")
    assert _read(folder, "text") == [{"text": "a", "id": "a.txt"}, {"text": "b", "id": "b.txt"}]
    odd_ones = {
        "c.txt": (tmp_path / "nowhere", FileNotFoundError, "a link to .*nowhere, which is not"),
        "more": (elsewhere, ValueError, "a link to a folder, whose files would not be read"),
    }
    for name, (target, error, message) in odd_ones.items():
        (folder / name).symlink_to(target)
        with pytest.raises(error, match=f"{name} is {message}"):
            _read(folder, "text")
        (folder / name).unlink()
    (folder / "d.txt.gz").write_bytes(gzip.compress(b"d"))
    with pytest.raises(
        ValueError, match=r"d\.txt\.gz is compressed, and would not be read: unpack"
    ):
        _read(folder, "text")


def test_a_link_to_nothing_that_fits_a_pattern_is_named(tmp_path):
    (tmp_path / "1.jsonl").write_bytes(_lines([{"text": "a"}]))
    (tmp_path / "2.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"2\.jsonl is a link to .*nowhere, which is not"):
        _read(tmp_path / "*.jsonl")


def test_a_folder_in_a_bucket_gives_what_one_on_a_disk_gives(tmp_path, bucket):
    where, put = bucket
    for name, text in (("b/1.md", "one"), ("b.txt", "zwei ü"), ("c.png", "no")):
        (tmp_path / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "t" / name).write_text(text, encoding="utf-8")
        put(f"t/{name}", text.encode())
    here, there = (open_source(TextConfig("a", path)) for path in (f"{tmp_path}/t", f"{where}/t"))
    assert [here[i]["id"] for i in range(len(here))] == ["b/1.md", "b.txt"]
    assert [here[i] for i in range(2)] == [there[i] for i in range(2)]
    assert here.fingerprint == there.fingerprint


def test_a_bucket_that_cannot_be_opened_or_lacks_the_file_says_so(bucket):
    where, put = bucket
    put("x", b"")
    with pytest.raises(ValueError, match="nowhere://b/a.jsonl cannot be opened: .*not known"):
        _read("nowhere://b/a.jsonl")
    with pytest.raises(FileNotFoundError, match="there is no file memory://bucket/a.jsonl"):
        _read(f"{where}/a.jsonl")
    with pytest.raises(FileNotFoundError, match="there is no folder memory://bucket/t"):
        _read(f"{where}/t", kind="text")


@pytest.mark.parametrize("kind", [JsonlConfig, CsvConfig, ParquetConfig, TextConfig])
def test_files_that_change_after_they_were_opened_are_told(tmp_path, kind):
    path = tmp_path / "a.txt"
    path.write_text("text\na\n" if kind is CsvConfig else '{"text": "a"}\n')
    if kind is ParquetConfig:
        parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    source = kind("a", str(tmp_path if kind is TextConfig else path)).open("train")
    source.check_unchanged()
    for change in (lambda: os.utime(path, ns=(1, 1)), path.unlink):
        change()
        with pytest.raises(ValueError, match=r"a\.txt was changed or replaced while it was read"):
            source.check_unchanged()
