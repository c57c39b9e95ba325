"""What can be retrieved: passages of documents, or labelled examples, as a table on disk.

A document is cut into passages by tokens; an example stays whole. Both are read through the sources
of `research.data.sources`, whatever holds them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import ipc
from tqdm import tqdm

from research.config.schema import Count, Positive
from research.config.suggestions import suggestion
from research.data.cached_folder import cached_folder
from research.data.sources import SourceConfig, open_source
from research.data.sources.base import RecordsConfig
from research.data.sources.formats import OF_OBJECTIVES
from research.data.sources.formats.unread import METADATA
from research.data.sources.records import Records
from research.text.conversation import WEIGHT
from research.text.tokenizer import Tokenizer

# Part of every key: raise it when the files or their meaning change.
SCHEMA = 1
# Characters of records that are cut in one call; bounds memory, and is enough to use every core.
_BLOCK = 2**21
_TABLE = "passages.arrow"
# What is read of a message, and who says it.
_OF_MESSAGE = ("role", "content", "name", WEIGHT)
_COLUMNS = pyarrow.schema(
    [
        ("id", pyarrow.large_string()),
        ("document", pyarrow.large_string()),
        ("row", pyarrow.int64()),
        ("text", pyarrow.large_string()),
        ("completion", pyarrow.large_string()),
        ("tokens", pyarrow.int32()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Chunks:
    """How documents are cut into passages."""

    # most tokens of a passage, and how many of them may be those that end the one before
    tokens: Positive = 128
    overlap: Count = 32
    # whose tokens: a tokenizer's file, or a run's folder; None: of the model that embeds the
    # passages, or else of the one that is asked
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if self.overlap >= self.tokens:
            raise ValueError(
                f"chunks of {self.tokens} tokens cannot have {self.overlap} in common with the "
                "one before: set `overlap` below `tokens`"
            )


@dataclasses.dataclass(frozen=True)
class Passage:
    """A stretch of a document, or a labelled example."""

    # the same while its source and the cutting are: its document's, and which stretch (`a.md#2`)
    id: str
    # the record's own name, or its row (`row 17`)
    document: str
    # row of the source
    row: int
    # what is searched: the stretch, or the example's prompt
    text: str
    # of an example; None: a passage
    completion: str | None
    # of the text, as it was cut
    tokens: int

    @property
    def content(self) -> str:
        """All that it says."""
        return self.text if self.completion is None else f"{self.text}\n{self.completion}"


class Passages:
    """All passages of a source, in their order; read from disk as they are asked for."""

    def __init__(self, table: pyarrow.Table, source: Records, key: Mapping[str, Any]):
        self._table, self._source = table, source
        # What they depend on, as JSON.
        self.key = key

    @property
    def name(self) -> str:
        """The source and its split."""
        return self._source.name

    @property
    def are_examples(self) -> bool:
        """Whether they are labelled examples."""
        return self._table["completion"].null_count < len(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Passage:
        (record,) = self._table.slice(int(index), 1).to_pylist()
        return Passage(**record)

    def origin(self, passage: Passage) -> str:
        """File and line, or row, that a passage stands in."""
        return self._source.place(passage.row)

    def texts(self) -> list[str]:
        """[N] what is searched of each."""
        return self._table["text"].to_pylist()

    def contents(self) -> list[str]:
        """[N] all that each says."""
        completions = self._table["completion"].to_pylist()
        pairs = zip(self.texts(), completions, strict=True)
        return [text if end is None else f"{text}\n{end}" for text, end in pairs]

    def lengths(self) -> np.ndarray:
        """[N] int32 tokens of each, as they were cut."""
        return self._table["tokens"].to_numpy()

    def documents(self) -> list[str]:
        """[N] the document of each."""
        return self._table["document"].to_pylist()

    def check_documents(self) -> None:
        """Raises ValueError if two records have one id: which of them is right cannot be told."""
        row_of: dict[str, int] = {}
        for document, row in zip(self.documents(), self._table["row"].to_pylist(), strict=True):
            if (first := row_of.setdefault(document, row)) != row:
                places = " and ".join(self._source.place(each) for each in (first, row))
                raise ValueError(
                    f"{self.name}: {places} have one id, {document!r:.60}, and retrieval.relevant "
                    "names documents by it: give each its own, in the field retrieval.id_field"
                )


def read_passages(
    source: SourceConfig,
    chunks: Chunks,
    id_field: str | None,
    tokenizer: Tokenizer,
    cache: Path,
) -> Passages:
    """The passages of a source's training split, cut once and kept in the cache.

    Args:
      source: documents, or labelled examples.
      chunks: how documents are cut.
      id_field: names a record; None: `id`, where records have it.
      tokenizer: whose tokens passages are counted in.
      cache: folder of all indexes.

    Raises:
      ValueError: it holds no text, a record has no such field, or it was prepared already.
    """
    records = _open(source, id_field)
    key = {
        "schema": SCHEMA,
        "source": records.fingerprint,
        "acceptance": records.acceptance,
        "chunks": [chunks.tokens, chunks.overlap, tokenizer.fingerprint()],
        "id_field": id_field,
    }

    def write(folder: Path) -> None:
        with ipc.new_file(folder / _TABLE, _COLUMNS) as writer:
            count = 0
            for rows in _cut_all(records, chunks, id_field, tokenizer):
                writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, _COLUMNS))
                count += len(rows)
            if not count:
                raise ValueError(
                    f"{records.name}: nothing to retrieve: its {len(records)} records hold no text"
                )
        records.check_unchanged()

    folder = cached_folder(cache, key, f"cached passages of {records.name}", write)
    table = ipc.open_file(pyarrow.memory_map(str(folder / _TABLE))).read_all()
    return Passages(table, records, key)


def cut(text: str, spans: np.ndarray, size: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """Cuts a text into stretches of at most `size` tokens, between words where it can.

    Args:
      spans: [n,2] characters of each token, see `Tokenizer.spans`.
      overlap: most tokens that a stretch has in common with the one before it.

    Yields:
      First character, the one after the last, and number of tokens; all tokens are in one.
    """
    starts = spans[:, 0]
    is_space = np.asarray([True, *map(str.isspace, text), True])  # of the character before, and on
    is_word = is_space[starts] | is_space[starts + 1]
    first, count = 0, len(spans)
    while first < count:
        stop = min(first + size, count)
        if stop < count:
            # at least one token more than what the next stretch repeats
            least = min(first + overlap + 1, stop)
            words = np.flatnonzero(is_word[least : stop + 1])
            stop = least + int(words[-1]) if len(words) else stop
        yield int(spans[first, 0]), int(spans[first:stop, 1].max()), stop - first
        if stop == count:
            return
        words = np.flatnonzero(is_word[stop - overlap : stop])
        first = stop - overlap + int(words[0]) if len(words) else stop - overlap


def _open(source: SourceConfig, id_field: str | None) -> Records:
    known = OF_OBJECTIVES | METADATA | {None}  # formats refuse fields that they do not know
    if isinstance(source, RecordsConfig) and id_field not in known:
        unused = (*source.unused_fields, re.escape(str(id_field)))
        source = dataclasses.replace(source, unused_fields=unused)
    data = open_source(source)
    if not isinstance(data, Records):
        raise ValueError(
            f"{data.name}: a source of the kind {source.kind!r} holds tokens, no text to retrieve: "
            "name the source that it was prepared from"
        )
    try:
        count = len(data)
    except ValueError as error:
        if id_field is None:
            raise
        raise ValueError(f"retrieval.id_field={id_field!r}: {error}") from error
    if not count:
        raise ValueError(f"{data.name}: nothing to retrieve: it has no record")
    return data


def _cut_all(
    records: Records, chunks: Chunks, id_field: str | None, tokenizer: Tokenizer
) -> Iterator[list[dict[str, Any]]]:
    """Rows of the table, block by block."""
    block: list[dict[str, Any]] = []
    characters = 0
    bar = tqdm(range(len(records)), f"cut {records.name}", unit="row", leave=False, disable=None)
    for row in bar:
        block.append(_read(records, row, id_field))
        characters += len(block[-1]["text"])
        if characters >= _BLOCK:
            yield _cut_block(block, chunks, tokenizer)
            block, characters = [], 0
    yield _cut_block(block, chunks, tokenizer)


def _cut_block(
    block: list[dict[str, Any]], chunks: Chunks, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    rows = []
    spans_of_all = tokenizer.spans([record["text"] for record in block])
    for record, spans in zip(block, spans_of_all, strict=True):
        text = record["text"]
        if record["completion"] is not None:
            rows.append({**record, "id": record["document"], "tokens": len(spans)})
            continue
        stretches = list(cut(text, spans, chunks.tokens, chunks.overlap))
        for number, (start, stop, tokens) in enumerate(stretches, start=1):
            part = text[start:stop]
            if part.strip():
                suffix = f"#{number}" if len(stretches) > 1 else ""
                id = record["document"] + suffix
                rows.append({**record, "id": id, "text": part, "tokens": tokens})
    return rows


def _read(records: Records, row: int, id_field: str | None) -> dict[str, Any]:
    """Document, row, text and completion of a record."""
    record = records[row]
    text, completion = _texts(record, f"{records.name}, row {row}")
    id = record.get(id_field or "id")
    if id_field is not None and not isinstance(id, str | int):
        raise ValueError(
            f"{records.name}, row {row}: retrieval.id_field is {id_field!r}, which must be a text "
            f"or a number, not {id!r:.40}{suggestion(id_field, record)}"
        )
    document = str(id) if isinstance(id, str | int) and str(id) else f"row {row}"
    return {"document": document, "row": row, "text": text, "completion": completion}


def _check_plain(messages: Sequence[Mapping[str, Any]], where: str) -> None:
    """Refuses what no passage would say of a conversation.

    Raises:
      ValueError: a message with more than a text, such as calls of tools, or a last answer of
        weight 0.
    """
    for number, message in enumerate(messages):
        more = [name for name in message if name not in _OF_MESSAGE and message[name]]
        if more:
            raise ValueError(
                f"{where}: messages[{number}] has {more[0]!r}, which a passage would not say: "
                "leave such records out, or write it into the content, with a transform"
            )
    if messages[-1].get(WEIGHT, 1) == 0:
        raise ValueError(
            f"{where}: the last answer has weight 0, and would be shown as one to follow: leave "
            "such records out with a transform"
        )


def _texts(record: Mapping[str, Any], where: str) -> tuple[str, str | None]:
    """What is searched of a record, and its completion if it is an example."""
    messages = record.get("messages")
    if isinstance(messages, list):
        _check_plain(messages, where)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        last = answers[-1]
        before = [message["content"] for message in messages[:last] if message["content"]]
        return "\n".join(before), messages[last]["content"]
    if isinstance(record.get("prompt"), str) and isinstance(record.get("completion"), str):
        return record["prompt"], record["completion"]
    if isinstance(record.get("text"), str):
        return record["text"], None
    raise ValueError(
        f"{where}: nothing to retrieve: neither 'text' nor 'prompt' with 'completion', only "
        f"{sorted(record)}; name them in the source's `fields`, such as fields=dict(text=...)"
    )
