"""What a file is by its first bytes, where it is not what its source's kind reads.

Asked when a file cannot be parsed, so good files cost nothing.
"""

import codecs
import json

# Bytes that are looked at.
HEAD = 4096
# First bytes, what they are of, and what unpacks it.
_PACKED = (
    (b"\x1f\x8b", "gzip", "gzip -dc"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc"),
    (b"BZh", "bzip2", "bzip2 -dc"),
    (b"\xfd7zXZ\x00", "xz", "xz -dc"),
    (b"PK\x03\x04", "zip", "unzip -p"),
)
# What pyarrow and we unpack, where a file is named so.
_ENDINGS = {"gzip": ".gz", "zstd": ".zst"}
# Of text that is not UTF-8, and is in no encoding that shows.
ENCODING = (
    "if it is Latin-1 or Windows-1252, convert it with iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"
)
ZEROS = "it holds zeros, as an unfinished copy does: copy it again"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class FileError(ValueError):
    """What is wrong with a file as a whole: to leave out lines of it is no way out."""


_PAGES = ("<!doctype html", "<html", "<?xml")


def describe(head: bytes, kind: str) -> str | None:
    """What the file is and what to do, in a line; None where it may be of this kind.

    Args:
      head: its first `HEAD` bytes.
      kind: of source, such as "jsonl".
    """
    for magic, name, command in _PACKED:
        if head.startswith(magic):
            rename = f"name it {_ENDINGS[name]}, or " if name in _ENDINGS else ""
            rename = rename if kind in ("jsonl", "csv") else ""
            return f"it is a {name} file: {rename}unpack it with {command} FILE > NEW"
    if head.startswith(b"PAR1"):
        return None if kind == "parquet" else 'it is a Parquet file: read it with kind="parquet"'
    if head.startswith(LFS_POINTER):
        return "it is a pointer of Git LFS, not the data: run git lfs pull where it is from"
    if head and not head.strip(b"\0"):
        return ZEROS
    encoding = json.detect_encoding(head)  # tells UTF-16 and UTF-32 by where zeros are
    is_wide = not encoding.startswith("utf-8")
    try:
        decoder = codecs.getincrementaldecoder(encoding)("strict" if is_wide else "replace")
        text = decoder.decode(head)
    except UnicodeDecodeError:
        return None
    if not all(sign.isprintable() or sign in "\r\n\t\ufeff" for sign in text):
        return None
    if is_wide:
        name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
        return f"it is {name}, not UTF-8: convert it with iconv -f {name} -t UTF-8 FILE > NEW"
    return _describe_text(text.lstrip("\ufeff \t\r\n"), kind)


def _describe_text(text: str, kind: str) -> str | None:
    """The same of a text that does not begin with white space."""
    if text.lower().startswith(_PAGES):
        return "it is an HTML or XML page, as of an error or a log-in: download the data again"
    first, *others = [line.strip() for line in text.splitlines() if line.strip()][:2] or [""]
    inside = text[1:].lstrip()[:1]
    if kind != "csv" and _is_array(first) and (not others or others[0].startswith("[")):
        return (
            "its lines are JSON arrays, not objects: name their values with jq -c "
            "'{prompt: .[0], completion: .[1]}' FILE > NEW, or as else they are meant"
        )
    if text.startswith("[") and inside in ("", "{"):
        return "it is one JSON array: write a line for each record with jq -c '.[]' FILE > NEW"
    if text.startswith("{") and inside in ("", '"'):
        if others and not first.endswith("}") and not others[0].startswith("{"):
            return (
                "it is JSON over several lines: write a line for each record with jq -c . FILE > "
                "NEW (or jq -c '.data[]', where a list named data holds them)"
            )
        return None if kind == "jsonl" else 'it is JSON lines: read it with kind="jsonl"'
    for delimiter, setting in ((",", ""), ("\t", ', delimiter="\\t"'), (";", ', delimiter=";"')):
        if kind != "csv" and others and delimiter in first and delimiter in others[0]:
            return f'it looks like separated values: read it with kind="csv"{setting}'
    return None


def _is_array(line: str) -> bool:
    try:
        return isinstance(json.loads(line), list)
    except (ValueError, RecursionError):
        return False
