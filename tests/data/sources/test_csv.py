"""Separated values: quoting, several files, numbers as labels, damaged files."""

import gzip

import pytest

from research.data.sources import open_source
from research.data.sources.csv import CsvConfig


def test_quoted_values_several_files_and_numbers_are_read(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"one, ""two""\nthree",1\nnull,0\n')
    (tmp_path / "b.csv").write_text("text,label\nfour ü,1\n", encoding="utf-8")
    source = open_source(CsvConfig("a", str(tmp_path / "*.csv"), label_words=("bad", "good")))
    assert source.format == "classification"
    assert [source[i]["prompt"] for i in range(len(source))] == [
        'one, "two"\nthree',
        "null",
        "four ü",
    ]
    assert [source[i]["completion"] for i in range(3)] == ["good", "bad", "good"]


def test_tabs_and_compressed_files_are_read_alike(tmp_path):
    content = b"prompt\tcompletion\na, b\t007x\n"
    (tmp_path / "a.tsv").write_bytes(content)
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(content))
    for name in ("a.tsv", "b.tsv.gz"):
        source = open_source(CsvConfig("a", str(tmp_path / name), delimiter="\t"))
        assert len(source) == 1 and source[0] == {"prompt": "a, b", "completion": "007x"}


def test_what_cannot_be_read_names_file_and_row(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,b,c\n")
    with pytest.raises(ValueError, match=r"a\.csv: damaged, or no CSV file with a header: .*3"):
        open_source(CsvConfig("a", str(tmp_path / "a.csv")))
    (tmp_path / "b.csv").write_text("text,label\na,1\n")
    source = open_source(CsvConfig("a", str(tmp_path / "b.csv"), label_words=("bad",)))
    with pytest.raises(ValueError, match=r"b\.csv, row 0: label 1 has no word"):
        source[0]
    with pytest.raises(ValueError, match="one character"):
        CsvConfig("a", "b.csv", delimiter="")
