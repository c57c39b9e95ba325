"""A file that is not what its name says is told by what it is, with what to do."""

import gzip
import io
import json
import lzma
import subprocess
import zipfile

import pyarrow
import pytest
from pyarrow import parquet

from research.data.sources import CsvConfig, JsonlConfig, ParquetConfig, TextConfig

ROWS = [{"text": f"Grüße {n}", "n": n} for n in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TABLE = "text,n\n" + "".join(f"{row['text']},{row['n']}\n" for row in ROWS)


def in_zip():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jsonl", LINES)
    return file.getvalue()


def in_parquet():
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    return file.getvalue()


PAGE = b"<!DOCTYPE html>\n<html><title>404</title>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
# content, what of, and what is said where it is read as JSON lines, CSV and Parquet
FILES = {
    "gzip": (gzip.compress(LINES.encode()), "a gzip file: "),
    "xz": (lzma.compress(LINES.encode()), "a xz file: unpack it with xz -dc FILE > NEW"),
    "zip": (in_zip(), "a zip file: unpack it with unzip -p FILE > NEW"),
    "zstd": (pyarrow.compress(LINES.encode(), "zstd", asbytes=True), "a zstd file: "),
    "zeros": (bytes(5000), "it holds zeros"),
    "page": (PAGE, "an HTML or XML page"),
    "pointer": (POINTER, "a pointer of Git LFS, .* git lfs pull"),
    "utf-16": (LINES.encode("utf-16"), "it is UTF-16, .* iconv -f UTF-16 -t UTF-8"),
    "utf-16-le": (LINES.encode("utf-16-le"), "it is UTF-16LE, not UTF-8"),
    "utf-32": (LINES.encode("utf-32"), "it is UTF-32, not UTF-8"),
    "array": (json.dumps(ROWS, indent=1).encode(), r"one JSON array: .* jq -c '\.\[\]'"),
    "object": (json.dumps({"data": ROWS}, indent=1).encode(), r"several lines: .*jq -c '\.data"),
}


def read_all(config):
    source = config.open("train")
    return [source[row] for row in range(len(source))]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", [JsonlConfig, CsvConfig, ParquetConfig])
def test_a_file_of_another_kind_is_told_in_one_line(tmp_path, kind, name):
    content, message = FILES[name]
    path = tmp_path / "a.data"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.data: it .*{message.removeprefix('it ')}") as caught:
        read_all(kind("a", str(path)))
    assert "\n" not in str(caught.value)
    rename = "name it .gz, or unpack" if kind is not ParquetConfig else "file: unpack"
    assert name != "gzip" or rename in str(caught.value)


OTHERS = [
    (CsvConfig, LINES.encode(), 'it is JSON lines: read it with kind="jsonl"'),
    (JsonlConfig, in_parquet(), 'a Parquet file: read it with kind="parquet"'),
    (CsvConfig, in_parquet(), 'a Parquet file: read it with kind="parquet"'),
    (JsonlConfig, TABLE.encode(), 'separated values: read it with kind="csv"'),
    (JsonlConfig, TABLE.replace(",", "\t").encode(), r'kind="csv", delimiter="\\t"'),
    (ParquetConfig, TABLE.encode(), 'separated values: read it with kind="csv"'),
    (JsonlConfig, LINES.encode("latin-1"), r"a\.data:1: .* -f WINDOWS-1252 -t UTF-8 FILE"),
    (
        CsvConfig,
        TABLE.encode("latin-1"),
        r"a\.data, line 2: not UTF-8 .* -f WINDOWS-1252 -t UTF-8 FILE",
    ),
    (CsvConfig, TABLE.encode("utf-16-le"), "it is UTF-16LE, not UTF-8"),
]


@pytest.mark.parametrize(("kind", "content", "message"), OTHERS)
def test_what_reads_or_converts_it_is_said(tmp_path, kind, content, message):
    path = tmp_path / "a.data"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_all(kind("a", str(path)))


def test_lines_that_are_arrays_or_zeros_are_named_as_what_they_are(tmp_path):
    path = tmp_path / "a.data"
    for lines in (b'["a", "b"]\n["c", "d"]\n', b'[{"role": "user"}, 1]\n[{"role": "x"}, 2]\n'):
        path.write_bytes(lines)
        with pytest.raises(ValueError, match="its lines are JSON arrays, not objects: .* jq"):
            read_all(JsonlConfig("a", str(path)))
    path.write_bytes(LINES.encode() + bytes(40) + b"\n")
    with pytest.raises(ValueError, match=r"a\.data:4: it holds zeros") as caught:
        read_all(JsonlConfig("a", str(path)))
    assert "Latin-1" not in str(caught.value) and "bad_lines" in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_to_leave_out_lines_is_not_advised_where_a_whole_file_is_wrong(tmp_path, name):
    path = tmp_path / "a.data"
    path.write_bytes(FILES[name][0])
    with pytest.raises(ValueError, match=r"a\.data: it ") as caught:
        read_all(JsonlConfig("a", str(path)))
    assert "bad_lines" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "a pointer of Git LFS"),
        ("plain".encode("utf-16-le"), "UTF-16LE"),
        ("plain".encode("utf-16"), "UTF-16, not"),
        ("Grüße".encode("latin-1"), "WINDOWS-1252"),
        (gzip.compress(b"plain", mtime=0), "a gzip file: unpack"),
    ],
)
def test_a_text_file_that_is_none_is_told(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.txt: .*{message}"):
        read_all(TextConfig("a", str(tmp_path)))


@pytest.mark.parametrize("name", ["gzip", "utf-16-le", "utf-32"])
def test_the_commands_that_are_named_make_a_file_that_is_read(tmp_path, name):
    content, path = FILES[name][0], tmp_path / "a.data"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_all(JsonlConfig("a", str(path)))
    command = str(caught.value).rsplit("with ", 1)[1].split(". ")[0]
    command = command.replace("FILE", str(path)).replace("NEW", str(tmp_path / "new"))
    subprocess.run(command, shell=True, check=True)
    assert read_all(JsonlConfig("a", str(tmp_path / "new"))) == ROWS


def test_good_files_of_any_first_bytes_are_read(tmp_path):
    texts = ["version https://git", "<html> is a tag", "[x], y", '{"a": 1', "PAR2", "Bz"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.csv").write_text(f'text,"{text.replace(chr(34), "")}"\n{number},2\n')
        (source,) = read_all(CsvConfig("a", str(tmp_path / f"{number}.csv")))
        assert source["text"] == str(number)
        (tmp_path / f"{number}.jsonl").write_text(json.dumps({"text": text}) + "\n")
        assert read_all(JsonlConfig("a", str(tmp_path / f"{number}.jsonl"))) == [{"text": text}]
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    assert [row["text"] for row in read_all(TextConfig("a", str(tmp_path / "texts")))] == texts
