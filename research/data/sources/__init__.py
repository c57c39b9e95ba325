"""Where examples come from: TFDS builders, JSONL, Parquet, CSV, folders of text, and what
`graft prepare` prepared. One file a kind.

A source has `len()` and `source[i] -> dict`, gives text as `str`, knows its `name` and `format`,
and has a `fingerprint` that changes when its content does. A new kind is one file and one line in
`KINDS`.
"""

from typing import Any

from research.config.schema import by_kind, one_of
from research.data.sources.base import Source, SourceConfig
from research.data.sources.csv import CsvConfig
from research.data.sources.jsonl import JsonlConfig
from research.data.sources.parquet import ParquetConfig
from research.data.sources.prepared import PreparedConfig
from research.data.sources.records import decode_text
from research.data.sources.text import TextConfig
from research.data.sources.tfds import TfdsConfig

__all__ = [
    "KINDS",
    "AnySourceConfig",
    "CsvConfig",
    "JsonlConfig",
    "ParquetConfig",
    "PreparedConfig",
    "Source",
    "SourceConfig",
    "TextConfig",
    "TfdsConfig",
    "decode_text",
    "open_source",
]

KINDS: dict[str, type[SourceConfig]] = by_kind(
    TfdsConfig,
    JsonlConfig,
    ParquetConfig,
    CsvConfig,
    TextConfig,
    PreparedConfig,
)
# One of them, told apart by its `kind`; a config that names none means "tfds".
AnySourceConfig: Any = one_of(KINDS.values())


def open_source(config: SourceConfig, split: str | None = None) -> Source:
    """Opens `split` (default: the one that is trained on) of a source; see `SourceConfig.open`."""
    return config.open(split or config.split)
