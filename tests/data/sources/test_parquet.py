"""Rows of Parquet files, exact at any place."""

import json

import fsspec
import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from research.data.sources import JsonlConfig, ParquetConfig, open_source
from research.runtime import expansion


def _write(path, rows, group=3):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)


def _source(path):
    return open_source(ParquetConfig("a", str(path)))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 4), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_row_of_any_file_is_found_in_any_order(tmp_path, monkeypatch, sizes, group, data):
    monkeypatch.setattr("research.data.sources.parquet._ROWS", 2)
    for old in tmp_path.iterdir():
        old.unlink()
    rows = [{"text": f"ü {i}", "turns": [{"role": "user", "n": i}]} for i in range(sum(sizes))]
    for number, size in enumerate(sizes):
        start = sum(sizes[:number])
        _write(tmp_path / f"{number}.parquet", rows[start : start + size], group)
    source = _source(tmp_path / "*.parquet")
    assert len(source) == len(rows)
    for index in data.draw(st.permutations(range(len(rows)))):
        assert source[index] == rows[index] and source[index - len(rows)] == rows[index]
    with pytest.raises(IndexError):
        source[len(rows)]


def test_parquet_in_a_bucket_has_the_fingerprint_of_its_content(tmp_path):
    rows = [{"text": f"words {i}"} for i in range(5)]
    _write(tmp_path / "a.parquet", rows)
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/a.parquet", (tmp_path / "a.parquet").read_bytes())
    here, there = _source(tmp_path / "a.parquet"), _source("memory://bucket/a.parquet")
    assert [there[i] for i in range(5)] == rows
    assert here.fingerprint == there.fingerprint
    _write(tmp_path / "a.parquet", rows[:4])
    assert _source(tmp_path / "a.parquet").fingerprint != here.fingerprint


def test_a_row_group_that_unpacks_to_too_much_is_refused_before_it_fills_memory(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(expansion, "ALWAYS", 2**20)
    monkeypatch.setenv("GRAFT_MAX_EXPANSION", "100")
    # one value, and a count of 100,000: 100 MB from a few kilobytes
    column = pyarrow.DictionaryArray.from_arrays(np.zeros(100_000, np.int32), ["a" * 1000])
    table = pyarrow.table({"text": column.cast(pyarrow.string())})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 20_000
    pyarrow.default_memory_pool().release_unused()
    before = pyarrow.total_allocated_bytes()
    with pytest.raises(expansion.ExpansionError, match=r"a\.parquet: .* set GRAFT_MAX_EXPANSION"):
        _source(tmp_path / "a.parquet")[0]
    assert pyarrow.total_allocated_bytes() - before < 50 * 2**20
    monkeypatch.setenv("GRAFT_MAX_EXPANSION", "99999999")
    assert _source(tmp_path / "a.parquet")[99_999] == {"text": "a" * 1000}


def test_row_groups_that_together_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    """Each is within the bound; their tokens would fill a disk."""
    monkeypatch.setattr(expansion, "ALWAYS", 2**20)
    monkeypatch.setenv("GRAFT_MAX_EXPANSION", "100")
    column = pyarrow.DictionaryArray.from_arrays(np.zeros(10_000, np.int32), ["a" * 1000])
    table = pyarrow.table({"text": column.cast(pyarrow.string())})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=500)
    source = _source(tmp_path / "a.parquet")
    assert source[499] == {"text": "a" * 1000}  # the footer states dictionaries as they are stored
    with pytest.raises(expansion.ExpansionError, match=r"a\.parquet: .* set GRAFT_MAX_EXPANSION"):
        for row in range(500, len(source), 500):
            source[row]
    settings = {"row_group_size": 500, "use_dictionary": False, "compression": "zstd"}
    parquet.write_table(table, tmp_path / "b.parquet", **settings)
    with pytest.raises(expansion.ExpansionError, match=r"b\.parquet: .* set GRAFT_MAX_EXPANSION"):
        len(_source(tmp_path / "b.parquet"))


@pytest.mark.parametrize(
    ("place", "stated"), [(0, 50), (0, 62), (1, 50), (1, 62), (3, 50), (3, 62), (None, 62)]
)
def test_metadata_that_lies_about_rows_is_refused(tmp_path, place, stated):
    """That of the file, of the column, of the group, or of all: rows would be left out, or asked
    for that are not there."""
    path, rows = tmp_path / "a.parquet", 61
    table = pyarrow.table({"text": ["a text of some words"] * rows})
    parquet.write_table(table, path, store_schema=False, write_statistics=False)
    content = bytearray(path.read_bytes())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    # Thrift writes a small whole number as a byte that is twice as large
    places = [at for at in range(footer, len(content) - 8) if content[at] == 2 * rows]
    assert len(places) == 4
    for at in places if place is None else [places[place]]:
        content[at] = 2 * stated
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet: damaged.* states"):
        _source(path)[0]


def test_arguments_of_other_calls_are_absent_as_in_json_lines(tmp_path):
    """Arrow fills fields that a struct lacks with null; in JSON a null is what a record says."""

    def make_record(arguments, schema):
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        messages = [
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": "A", "tool_calls": [call]},
        ]
        function = {"name": "f", "parameters": {"properties": {"x": schema}}}
        tools = [{"type": "function", "function": function}]
        return {"messages": messages, "tools": tools, "documents": [arguments]}

    records = [
        make_record({"x": "1"}, {"type": "string"}),
        make_record({"y": [{"a": 1}, {"b": 2}]}, {"enum": ["a"]}),
    ]
    _write(tmp_path / "a.parquet", records)
    for row, record in enumerate(records):
        example = _source(tmp_path / "a.parquet")[row]
        assert {name: example[name] for name in record} == record
    explicit = make_record({"x": None}, {"enum": None})
    (tmp_path / "a.jsonl").write_text(json.dumps(explicit))
    example = JsonlConfig("a", str(tmp_path / "a.jsonl")).open("train")[0]
    assert {name: example[name] for name in explicit} == explicit


def test_two_columns_of_one_name_are_refused(tmp_path):
    columns = [pyarrow.array(["good"]), pyarrow.array(["bad"])]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table(columns, names=["text", "text"]), path)
    with pytest.raises(ValueError, match=r"a\.parquet: several columns are named 'text'"):
        _source(path)


def test_a_wrong_row_or_file_is_named(tmp_path):
    _write(tmp_path / "1.parquet", [{"text": "a"}] * 4)
    table = pyarrow.table({"text": pyarrow.array([b"a"] * 4 + [b"\xff"], pyarrow.binary())})
    parquet.write_table(table, tmp_path / "2.parquet", row_group_size=2)
    with pytest.raises(ValueError, match=r"2\.parquet, row 4: not UTF-8"):
        _source(tmp_path / "*.parquet")[8]
    (tmp_path / "3.parquet").write_bytes((tmp_path / "1.parquet").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"3\.parquet: damaged, or no Parquet file"):
        _source(tmp_path / "3.parquet")
