"""Separated values: quoting, several files, numbers as labels, damaged files."""

import csv
import gzip
import subprocess
import sys

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
    with pytest.raises(ValueError, match=r"a\.csv, line 2: 3 values for 2 columns: 'a,b,c'"):
        open_source(CsvConfig("a", str(tmp_path / "a.csv")))
    (tmp_path / "b.csv").write_text("text,label\na,1\n")
    source = open_source(CsvConfig("a", str(tmp_path / "b.csv"), label_words=("bad",)))
    with pytest.raises(ValueError, match=r"b\.csv, row 0: label 1 has no word"):
        source[0]
    (tmp_path / "c.csv").write_text("text,text\na,b\n")
    with pytest.raises(ValueError, match=r"c\.csv: several columns are named 'text'"):
        open_source(CsvConfig("a", str(tmp_path / "c.csv")))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty\.csv: an empty file"):
        open_source(CsvConfig("a", str(tmp_path / "empty.csv")))
    (tmp_path / "latin.csv").write_bytes(b"text,label\na,1\nb\xe9,1\n")
    with pytest.raises(ValueError, match=r"latin\.csv, line 3: not UTF-8 .* iconv -f WINDOWS-1252"):
        open_source(CsvConfig("a", str(tmp_path / "latin.csv")))
    for delimiter in ("", '"', "\n"):
        with pytest.raises(ValueError, match="one character"):
            CsvConfig("a", "b.csv", delimiter=delimiter)


@pytest.mark.parametrize("delimiter", [",", "\t", "^"])
@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ('Q1,A\nQ2,"B\nQ3,C\nQ4,D\n', 3),  # all that follows would be one value
        ('Q1,A\n"Q\n2","B\nQ3,C\n', 4),  # the first value of that row is closed
        ('Q1,A\nQ2,"B\nQ3,"C"\n', 3),
        ('"He said \\"hi\\" twice",A\n', 2),
        ('Q1,A\n"Q"x,A\n', 3),
    ],
)
def test_quotes_that_do_not_fit_together_name_the_line_where_they_open(
    tmp_path, rows, line, delimiter
):
    (tmp_path / "a.csv").write_text(f"prompt,completion\n{rows}".replace(",", delimiter))
    with pytest.raises(ValueError, match=rf"a\.csv, line {line}: a value opens with a quote"):
        CsvConfig("a", str(tmp_path / "a.csv"), delimiter=delimiter).open("train")


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_the_command_that_is_named_converts_backslashes_before_quotes(tmp_path, delimiter):
    content = 'prompt,completion\n"He said \\"hi, you\\" twice",A\n'.replace(",", delimiter)
    (tmp_path / "FILE").write_text(content)
    with pytest.raises(ValueError, match="convert the file with") as error:
        CsvConfig("a", str(tmp_path / "FILE"), delimiter=delimiter).open("train")
    command = str(error.value).partition("convert the file with python")[2]
    subprocess.run(f"{sys.executable} {command}", shell=True, cwd=tmp_path, check=True)
    source = CsvConfig("a", str(tmp_path / "NEW"), delimiter=delimiter).open("train")
    assert source[0]["prompt"] == 'He said "hi, you" twice'.replace(",", delimiter)


def test_lines_and_quotes_inside_of_values_stay_over_blocks_of_rows(tmp_path):
    values = [f'{n}\n"{n}"\r\n,' + "x" * (n % 7) for n in range(3000)]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([value] for value in values)])
    source = CsvConfig("a", str(tmp_path / "a.csv")).open("train")
    assert [source[row]["text"] for row in range(len(source))] == values
