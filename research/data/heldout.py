"""A held-out split as batches: every token exactly once, in a fixed order."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from research.batch import Batch
from research.data.config import DataConfig
from research.data.examples import ExampleReader, pack_examples
from research.data.packing.rows import empty_rows
from research.text.tokenizer import Tokenizer


class HeldOut:
    """Every token of a split exactly once, in a fixed order; the last batch is padded.

    Bits per byte = (nats summed over all trained tokens, end-of-text included) / ln 2 / `bytes`.
    Every target of a document is in some row, so nothing is missing from the numerator, and the
    figure does not depend on the tokenizer.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        cache: str | os.PathLike[str] | ExampleReader,
        source: str,
        split: str,
        max_tokens: int | None = None,
    ):
        """Reads one split; needs no training data.

        Args:
          config: its sources, objective, sequence length, batch size and packing hold here too.
          tokenizer: the model's.
          cache: as for `Pipeline`.
          source: name of a source of `config`.
          split: which of its splits.
          max_tokens: whole documents are drawn (by the seed) up to so many tokens; at least one.
        """
        matching = [s for s in config.sources if s.name == source]
        if not matching:
            names = [s.name for s in config.sources]
            raise ValueError(f"There is no source {source!r}, only {names}.")
        examples, origin = ExampleReader.of(tokenizer, cache).read(config, matching[0], split)
        is_read = np.ones(len(examples), bool)
        if max_tokens is not None:
            order = np.random.default_rng(config.source_seed(source)).permutation(len(examples))
            fits = np.cumsum(examples.lengths[order]) <= max_tokens
            fits[0] = True
            is_read[order] = fits
        lengths = np.where(is_read, examples.lengths, 0)
        self.name, self.source = examples.name, source
        self.has_own_objective = bool(config.objectives)
        # identifies the content of the whole split
        self.fingerprint = origin.fingerprint
        # which rows of the split are read
        self.source_rows = np.unique(examples.row_of(np.flatnonzero(is_read)))
        self.documents = len(self.source_rows)
        # of each document [documents]
        examples_read = np.flatnonzero(is_read)
        numbers = np.searchsorted(self.source_rows, examples.row_of(examples_read))
        sizes = np.zeros_like(examples.trained) if examples.bytes is None else examples.bytes
        self.document_tokens, self.document_bytes = (
            np.bincount(numbers, each[examples_read], self.documents).astype(np.int64)
            for each in (examples.trained, sizes)
        )
        # Places that are trained on, and the UTF-8 bytes of the text that they spell (0 where an
        # objective has no bits per byte).
        self.tokens = int(examples.trained[is_read].sum())
        self.bytes = examples.text_bytes(is_read)
        self.truncated = int(examples.truncated[is_read].sum())
        self.rows = pack_examples(config, examples, lengths, tokenizer, config.source_seed(source))
        # which of a bank's adapters its rows use
        self.adapter: int | None = None
        self._config = config
        self._pad_id = tokenizer.pad_id

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.rows) // self._config.batch_size)

    def batch(self, index: int) -> Batch:
        """Batch `index` of `len(self)`, on every host the whole."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        size = self._config.batch_size
        model_fields = {
            n: (x.values.shape[1:], x.values.dtype) for n, x in self.rows.model_fields.items()
        }
        fields: dict[str, Any] = empty_rows(
            size, self._config.sequence_length, self._pad_id, model_fields
        )
        rows = list(range(index * size, min((index + 1) * size, len(self.rows))))
        if rows:
            self.rows.write(fields, list(range(len(rows))), rows)
        if self.adapter is not None:
            fields["adapter"] = np.full(size, self.adapter, np.int32)
        return Batch(**fields)

    def documents_of(self, index: int) -> list[np.ndarray]:
        """Of each row of batch `index` the numbers of its segments' documents, in their order."""
        size, plan = self._config.batch_size, self.rows.plan
        numbers = []
        for row in range(index * size, min((index + 1) * size, len(self.rows))):
            examples = plan.examples[plan.offsets[row] : plan.offsets[row + 1]]
            rows = self.rows.examples.row_of(examples)
            numbers.append(np.searchsorted(self.source_rows, rows))
        return numbers

    def batches(self) -> Iterator[Batch]:
        """All batches in order."""
        for index in range(len(self)):
            yield self.batch(index)
