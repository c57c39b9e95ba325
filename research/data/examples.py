"""From a source in a config to the checked examples of its objective."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import numpy as np

from research.config import schema
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
        self.acceptance = source.acceptance
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


class ExampleReader:
    """Opens, tokenizes (once, if it is no prepared source) and checks splits of sources.

    A split is read once for all that read it with one objective and length: whoever shares a reader
    shares its examples, which nobody changes.
    """

    def __init__(self, tokenizer: Tokenizer, cache: str | os.PathLike[str]):
        """Reads nothing yet.

        Args:
          tokenizer: the model's.
          cache: folder for tokenized sources, shared by all runs of this machine.
        """
        self._tokenizer, self._cache = tokenizer, cache
        self._examples: dict[str, tuple[Examples, Origin]] = {}

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, cache: str | os.PathLike[str] | ExampleReader
    ) -> ExampleReader:
        """The reader that is given, or a new one with this cache."""
        return cache if isinstance(cache, ExampleReader) else cls(tokenizer, cache)

    def read(self, config: DataConfig, source: SourceConfig, split: str) -> tuple[Examples, Origin]:
        """One split of one source, as its objective's examples.

        Raises:
          ValueError: anything that `data.checks` finds.
        """
        objective = config.objective_of(source.name)
        content = [schema.to_dict(source), split, schema.to_dict(objective)]
        key = json.dumps([*content, config.sequence_length], sort_keys=True)
        if key not in self._examples:
            self._examples[key] = self._read_now(config, source, split)
        return self._examples[key]

    def _read_now(
        self, config: DataConfig, source: SourceConfig, split: str
    ) -> tuple[Examples, Origin]:
        objective, tokenizer = config.objective_of(source.name), self._tokenizer
        length = config.sequence_length
        split_source = open_source(source, split)
        checks.check_not_empty(split_source.name, len(split_source))
        if isinstance(split_source, Prepared):
            table = read_prepared(split_source, tokenizer, objective.fields)
        else:
            table = encode(split_source, objective.encoder(tokenizer, length), self._cache)
        examples = objective.prepare(table, tokenizer, length)
        checks.check_examples(examples, tokenizer, length)
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
