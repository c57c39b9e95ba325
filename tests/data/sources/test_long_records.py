"""One record of gigabytes is refused by name before it fills the memory, in every kind of file."""

import json
import random
import tracemalloc

import pyarrow
import pytest
from pyarrow import parquet

from research.data.sources import CsvConfig, JsonlConfig, ParquetConfig, TextConfig
from research.runtime import expansion

SHORT, LONG = "a" * 20, "b" * 5000


def write_jsonl(folder, texts):
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "a.jsonl").write_text("\n\n".join(lines) + "\n")
    return JsonlConfig("made", str(folder / "a.jsonl"), bad_lines=0.5), r"a\.jsonl:3"


def write_parquet(folder, texts):
    table = pyarrow.table({"text": texts, "parts": [[text[:30]] for text in texts]})
    parquet.write_table(table, folder / "a.parquet")
    return ParquetConfig("made", str(folder / "a.parquet"), bad_lines=0.5), r"a\.parquet, row 1"


def write_text(folder, texts):
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    return TextConfig("made", str(folder), bad_lines=0.5), r"1\.txt"


@pytest.mark.parametrize("write", [write_jsonl, write_parquet, write_text])
def test_a_record_that_is_too_long_is_named_or_left_out(tmp_path, monkeypatch, write):
    config, place = write(tmp_path, [SHORT, LONG, SHORT])
    source = config.open("train")
    assert [len(source[i]["text"]) for i in range(3)] == [20, 5000, 20]
    monkeypatch.setenv("GRAFT_MAX_RECORD", "1000")
    source = config.open("train")
    assert len(source) == 2 and source.bad_lines == 1 and source[1]["text"] == SHORT
    strict = type(config)("made", config.path).open("train")
    with pytest.raises(ValueError, match=rf"{place}: a record of .* set GRAFT_MAX_RECORD"):
        strict[1]
    assert strict[2]["text"] == SHORT


def test_a_huge_row_of_parquet_is_not_decoded_alone_and_not_kept_beside_others(
    tmp_path, monkeypatch
):
    size = 2**22
    monkeypatch.setenv("GRAFT_MAX_RECORD", str(size // 4))
    huge = random.Random(0).randbytes(size // 2).hex()
    groups = [[SHORT], [huge], [SHORT] * 30 + [huge, "c", huge, huge]]
    schema = pyarrow.schema([pyarrow.field("text", pyarrow.string(), nullable=False)])
    with parquet.ParquetWriter(tmp_path / "a.parquet", schema, use_dictionary=False) as writer:
        for texts in groups:
            writer.write_table(pyarrow.table({"text": texts}, schema=schema))
    decoded_groups = []
    iter_batches = parquet.ParquetFile.iter_batches

    def note_group(self, rows, row_groups):
        decoded_groups.extend(row_groups)
        return iter_batches(self, rows, row_groups=row_groups)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", note_group)
    before = pyarrow.total_allocated_bytes()
    source = ParquetConfig("made", str(tmp_path / "a.parquet")).open("train")
    for row in (1, 32, 34, 35):
        with pytest.raises(ValueError, match=rf"a\.parquet, row {row}: a record of 4,194,3\d\d by"):
            source[row]
    assert set(decoded_groups) == {2}
    # of three that were decoded none is kept
    assert pyarrow.total_allocated_bytes() - before < size
    assert [source[row]["text"] for row in (0, 31, 33)] == [SHORT, SHORT, "c"]


def lists(values):
    """Three lists: two values, most, and two."""
    offsets = pyarrow.array([0, 2, len(values) - 2, len(values)], pyarrow.int32())
    return pyarrow.ListArray.from_arrays(offsets, values)


# Values that take no bytes or few in the file and in Arrow.
MANY = {
    "nulls": lists(pyarrow.nulls(1000)),
    "booleans": lists(pyarrow.array([True] * 1000)),
    "structs": pyarrow.StructArray.from_arrays([lists(pyarrow.nulls(1000))], ["a"]),
    "maps": pyarrow.array([[], [(i, None) for i in range(1000)], []], pyarrow.map_("i4", "null")),
    "dictionary": lists(pyarrow.DictionaryArray.from_arrays([0] * 24, ["b" * 400])),
}


@pytest.mark.parametrize("kind", MANY)
def test_values_of_a_row_count_however_little_they_take_in_the_file(tmp_path, monkeypatch, kind):
    table = pyarrow.table({"text": [SHORT] * 3, "more": MANY[kind]})
    parquet.write_table(table, tmp_path / "a.parquet")
    parquet.write_table(table.slice(1, 1), tmp_path / "b.parquet")
    config = ParquetConfig("made", str(tmp_path / "a.parquet"))
    assert config.open("train")[1] == table.slice(1, 1).to_pylist()[0]
    monkeypatch.setenv("GRAFT_MAX_RECORD", "5000")
    source = config.open("train")
    with pytest.raises(ValueError, match=r"a\.parquet, row 1: a record of [\d,]+ bytes or"):
        source[1]
    assert source[0]["text"] == source[2]["text"] == SHORT
    # a group of too many is not decoded
    monkeypatch.setattr(expansion, "ALWAYS", 2000)
    monkeypatch.setenv("GRAFT_MAX_EXPANSION", "2")
    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", None)
    for name in ("a", "b") if kind != "dictionary" else ():  # whose lengths are not in the metadata
        with pytest.raises(expansion.ExpansionError, match=rf"{name}\.parquet: .* unpack to over"):
            ParquetConfig("made", str(tmp_path / f"{name}.parquet")).open("train")[0]


def test_rows_that_are_large_together_become_objects_one_at_a_time(tmp_path, monkeypatch):
    values = [[True] * 20_000] * 20 + [[]] * 2000
    table = pyarrow.table({"text": [SHORT] * len(values), "more": values})
    parquet.write_table(table, tmp_path / "a.parquet")
    monkeypatch.setenv("GRAFT_MAX_RECORD", "200000")
    source = ParquetConfig("made", str(tmp_path / "a.parquet")).open("train")
    tracemalloc.start()
    try:
        assert source[19]["more"] == values[19]
        assert tracemalloc.get_traced_memory()[1] < 1_000_000  # of 20 * 20,000 * 8
    finally:
        tracemalloc.stop()
    assert source[0]["more"] == values[0] and source[20]["more"] == source[-1]["more"] == []


def test_a_long_row_of_csv_is_read_or_named_with_its_line(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("text,label\n" + f"{SHORT},1\n" * 3 + "c" * 2**21 + ",2\n")
    config = CsvConfig("made", str(tmp_path / "a.csv"))
    assert len(config.open("train")[3]["text"]) == 2**21
    (tmp_path / "b.csv").write_text('text,label\n"' + "line\n" * 2**19 + '",2\n')
    assert len(CsvConfig("made", str(tmp_path / "b.csv")).open("train")[0]["text"]) == 5 * 2**19
    monkeypatch.setenv("GRAFT_MAX_RECORD", "1000000")
    with pytest.raises(ValueError, match=r"a\.csv, line 5: a record of .* set GRAFT_MAX_RECORD"):
        config.open("train")
    with pytest.raises(ValueError, match=r"b\.csv, line 2 \(or a quote .* a record of 1,000,0"):
        CsvConfig("made", str(tmp_path / "b.csv")).open("train")


def test_a_line_of_any_length_takes_little_memory_until_it_is_refused(tmp_path):
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.truncate(3 * 2**27)  # zeros, and no end of the line
    tracemalloc.start()
    try:
        source = JsonlConfig("made", str(tmp_path / "a.jsonl")).open("train")
        with pytest.raises(ValueError, match=r"a\.jsonl:1: a record of 402,653,184 bytes"):
            source[0]
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
