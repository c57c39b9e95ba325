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


def test_values_stay_as_they_are_written(tmp_path):
    """Numbers too, which may be codes; only labels that have label words are numbers."""
    (tmp_path / "a.csv").write_text("prompt,completion\nplace 1,00123\nplace 2,45\n")
    source = open_source(CsvConfig("a", str(tmp_path / "a.csv")))
    assert [source[i]["completion"] for i in range(2)] == ["00123", "45"]


def test_another_delimiter_is_another_content(tmp_path):
    (tmp_path / "a.csv").write_text("text;b,c\n1;2,3\n")
    sources = [open_source(CsvConfig("a", str(tmp_path / "a.csv"), delimiter=d)) for d in ",;"]
    assert sources[0].fingerprint != sources[1].fingerprint


def test_what_cannot_be_read_names_file_and_row(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,b,c\n")
    with pytest.raises(ValueError, match=r"a\.csv, line 2 .*: 3 values for 2 columns: 'a,b,c'"):
        open_source(CsvConfig("a", str(tmp_path / "a.csv")))
    (tmp_path / "b.csv").write_text("text,label\na,1\n")
    source = open_source(CsvConfig("a", str(tmp_path / "b.csv"), label_words=("bad",)))
    with pytest.raises(ValueError, match=r"b\.csv, row 0: label 1 has no word"):
        source[0]
    (tmp_path / "c.csv").write_text("text,text\na,b\n")
    with pytest.raises(ValueError, match=r"c\.csv: several columns are named 'text'"):
        open_source(CsvConfig("a", str(tmp_path / "c.csv")))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty\.csv: .*Empty CSV file"):
        open_source(CsvConfig("a", str(tmp_path / "empty.csv")))
    with pytest.raises(ValueError, match="one character"):
        CsvConfig("a", "b.csv", delimiter="")
