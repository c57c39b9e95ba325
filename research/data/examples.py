"""From a source in a config to the checked examples of its objective."""

import dataclasses
import os
from typing import Any

import numpy as np

from research.data import checks
from research.data.config import DataConfig
from research.data.packing import planning
from research.data.packing.rows import PackedRows
from research.data.prepared_tokens import read_prepared
from research.data.sources import Source, SourceConfig, open_source
from research.data.sources.prepared import Prepared
from research.data.token_cache import encode
from research.objectives.base import Examples
from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Origin:
    """What is said of a source beside its examples."""

    # Identifies the content.
    fingerprint: str
    # One of `research.data.sources.formats.FORMATS`.
    format: str
    # Records that could not be read and were left out.
    bad_lines: int
    # How its records are changed by transforms.
    note: str = ""


class _Decoded:
    """The text of a prepared source's documents."""

    format, bad_lines, note = "text", 0, ""

    def __init__(self, source: Prepared, tokenizer: Tokenizer):
        self.name = source.name
        self.fingerprint = source.fingerprint
        self._source = source
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"text": self._tokenizer.decode(self._source[index]["tokens"])}


def open_texts(source: SourceConfig, split: str, tokenizer: Tokenizer) -> Source:
    """A split whose rows an objective reads, also where it was prepared and has only tokens."""
    split_source = open_source(source, split)
    return _Decoded(split_source, tokenizer) if isinstance(split_source, Prepared) else split_source


def read_examples(
    config: DataConfig,
    source: SourceConfig,
    split: str,
    tokenizer: Tokenizer,
    cache: str | os.PathLike[str],
) -> tuple[Examples, Origin]:
    """Opens, tokenizes (once, if it is no prepared source) and checks one split of one source."""
    objective = config.objective
    split_source = open_source(source, split)
    checks.check_not_empty(split_source.name, len(split_source))
    if isinstance(split_source, Prepared):
        table = read_prepared(split_source, tokenizer, objective.fields)
    else:
        table = encode(split_source, objective.encoder(tokenizer, config.sequence_length), cache)
    examples = objective.prepare(table, tokenizer, config.sequence_length)
    checks.check_examples(examples, tokenizer, config.sequence_length)
    return examples, Origin(
        split_source.fingerprint, split_source.format, split_source.bad_lines, split_source.note
    )


def pack_examples(
    config: DataConfig, examples: Examples, lengths: np.ndarray, tokenizer: Tokenizer, seed: int
) -> PackedRows:
    """Rows of the examples; those whose `lengths` [N] are 0 are left out."""
    plan = planning.plan(
        lengths,
        config.sequence_length,
        splittable=examples.splittable,
        pack=config.pack,
        seed=seed,
    )
    return PackedRows(examples, plan, tokenizer.pad_id)
