"""Where examples come from: TFDS builders, JSONL, Parquet, folders of text, and what
`graft prepare` prepared. One file a kind.

A source has `len()` and `source[i] -> dict`, gives text as `str`, knows its `name` and `format`,
and has a `fingerprint` that changes when its content does. A new kind is one file and one line in
`KINDS`.
"""

from collections.abc import Callable

from research.data.sources import jsonl, parquet, prepared, text, tfds
from research.data.sources.base import Source, SourceConfig, decode_text, nearest

__all__ = ["KINDS", "Source", "SourceConfig", "decode_text", "open_source"]

# Kind -> (config, split) -> source.
KINDS: dict[str, Callable[[SourceConfig, str], Source]] = {
    "tfds": tfds.open_tfds,
    "jsonl": jsonl.open_jsonl,
    "parquet": parquet.open_parquet,
    "text": text.open_text,
    "prepared": prepared.open_prepared,
}


def open_source(config: SourceConfig, split: str | None = None) -> Source:
    """Opens `split` (default: the one that is trained on) of a source.

    Raises:
        ValueError: unknown kind, or the source has no such split.
        FileNotFoundError: the file or folder is not there.
    """
    if config.kind not in KINDS:
        raise ValueError(
            f"Source {config.name!r} has the unknown kind {config.kind!r}"
            f"{nearest(config.kind, KINDS)}"
        )
    return KINDS[config.kind](config, split or config.split)
