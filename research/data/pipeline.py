"""Batches as a pure function of (config, seed, step): no iterator has a state to save.

Any number of hosts reads the same global batch, each the rows that its devices hold, and a
restarted run reads what it would have read.
"""

import dataclasses
import logging
import os
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from research.batch import Batch
from research.data import checks
from research.data.config import DataConfig
from research.data.examples import ExampleReader, Origin, pack_examples
from research.data.heldout import HeldOut
from research.data.mixture import Mixture
from research.data.packing.rows import FieldShapes, PackedRows, empty_rows
from research.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# "Scaling Data-Constrained Language Models" (Muennighoff et al. 2023): further repeats of the
# same text are worth clearly less than new text.
_EPOCHS_WORTH = 4.0
Rows = Sequence[int] | np.ndarray  # row numbers of a global batch
# Batches that are made ahead, by as many threads.
_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class SourceStatistics:
    """What is in a source, and what a run reads of it."""

    # the format of its records, and how they are written
    format: str
    # records left out
    bad_lines: int
    # once through the source
    documents: int
    tokens: int
    bytes: int
    rows: int
    # share of the places in rows that hold a token
    fill: float
    # share of the tokens that are trained on
    trained_share: float
    # examples of which something was cut
    truncated: int
    # of the run's rows
    share: float
    # over the run: how often it is read, and how many tokens that is
    epochs: float
    tokens_read: float


class Pipeline:
    """`batch(step)` for training; `heldout(name, split)` for evaluation."""

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        cache: str | os.PathLike[str] | ExampleReader,
        model_vocabulary: int | None = None,
        adapters: Sequence[str] = (),
        model_fields: FieldShapes | None = None,
        fingerprints: Mapping[str, str] | None = None,
    ):
        """Reads, tokenizes and plans all sources.

        Args:
          config: sources and shapes.
          tokenizer: the model's.
          cache: folder for tokenized sources, shared by all runs of this machine; or what reads
            them with this tokenizer, shared by pipelines.
          model_vocabulary: V of the model, to check the tokenizer against.
          adapters: names of a bank's adapters; every source then says which its rows use, and
            `Batch.adapter` counts them.
          model_fields: fields of batches that a model gives: zeros, until all rows have theirs.
          fingerprints: of what else its batches depend on, by what it is called.

        Raises:
            ValueError: anything that `data.checks` finds.
        """
        import grain.python as grain  # Here: it takes a second to import.

        if model_vocabulary is not None:
            checks.check_vocabulary(tokenizer, model_vocabulary)
        self.config = config
        self.tokenizer = tokenizer
        self.reader = ExampleReader.of(tokenizer, cache)
        self._adapters = _number_adapters(config, adapters)
        self._loss_weights = {s.name: s.loss_weight for s in config.sources if s.loss_weight != 1}
        self._model_fields = dict(model_fields or {})
        self._fingerprints = dict(fingerprints or {})
        self.rows: dict[str, PackedRows] = {}
        self.origins: dict[str, Origin] = {}
        # for each source: (how many rows it gave before) -> row
        self._orders: list[Any] = []
        for source in config.sources:
            examples, origin = self.reader.read(config, source, source.split)
            self.origins[source.name] = origin
            seed = config.source_seed(source.name)
            rows = pack_examples(config, examples, examples.lengths, tokenizer, seed)
            self.rows[source.name] = rows
            self._orders.append(grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat())
        sizes = [len(rows) for rows in self.rows.values()]
        trained = [rows.examples.trained.sum() / len(rows) for rows in self.rows.values()]
        self.mixture = Mixture(config.mixture, config.sources, sizes, config.batch_size, trained)
        is_mixed = bool(config.objectives)
        # rows of one objective may have a prefix where those of another have none
        self._has_prefix = is_mixed and any(each.bidirectional for each in config.all_objectives)
        self.mixture.counts(config.batch_size)  # there is a whole batch
        checks.check_batch(self.batch(0), tokenizer.vocabulary_size, "the first batch")

    def batch(self, step: int, rows: Rows | None = None) -> Batch:
        """Global batch `step`, or those rows of it that a host feeds.

        Args:
          step: of the run, from 0; there is no last one, sources repeat in a new order.
          rows: R row numbers of the global batch; None: all B.

        Returns:
          numpy leaves [R,S].
        """
        if step < 0:
            raise ValueError(f"step must not be negative, not {step}.")
        origins = self.rows_of(step, rows)
        fields: dict[str, Any] = empty_rows(
            len(origins),
            self.config.sequence_length,
            self.tokenizer.pad_id,
            self._model_fields,
        )
        if self._adapters:
            fields["adapter"] = np.zeros(len(origins), np.int32)
        if self._has_prefix:
            fields["prefix"] = np.zeros(fields["tokens"].shape, bool)
        for name in dict(origins):
            places = [place for place, (source, _) in enumerate(origins) if source == name]
            self.rows[name].write(fields, places, [origins[place][1] for place in places])
            if name in self._loss_weights:
                fields["weights"][places] *= np.float32(self._loss_weights[name])
            if self._adapters:
                fields["adapter"][places] = self._adapters[name]
        return Batch(**fields)

    def rows_of(self, step: int, rows: Rows | None = None) -> list[tuple[str, int]]:
        """Where the (given) rows of a global batch are from: a source's name and row."""
        names = [source.name for source in self.config.sources]
        start = (self.config.first_batch + step) * self.config.batch_size
        every = range(self.config.batch_size)
        picks = [self.mixture[start + every[row]] for row in (every if rows is None else rows)]
        return [(names[source], int(self._orders[source][number])) for source, number in picks]

    def batches(
        self, start_step: int = 0, rows: Rows | None = None
    ) -> Generator[Batch, None, None]:
        """`batch(start_step, rows)`, the next one, and so on, made ahead in Grain's threads.

        Closing the generator (or leaving it) stops the threads.
        """
        import grain.python as grain

        for field in self._model_fields:
            if any(field not in part.model_fields for part in self.rows.values()):
                raise ValueError(f"batches have a {field}, and rows were not given theirs")
        source = _Batches(self, rows)
        options = grain.ReadOptions(num_threads=_AHEAD, prefetch_buffer_size=_AHEAD)
        batches = iter(grain.MapDataset.source(source)[start_step:].to_iter_dataset(options))
        try:
            yield from batches
        finally:
            batches.close()

    def heldout(self, source: str, split: str, max_tokens: int | None = None) -> HeldOut:
        """Batches once through `split` of the source of this name; see `HeldOut`."""
        heldout = HeldOut(self.config, self.tokenizer, self.reader, source, split, max_tokens)
        heldout.adapter = self._adapters.get(source)
        return heldout

    def tokens(self, steps: int) -> float:
        """Places that hold a token in the first `steps` batches, on average over orders."""
        counts = self._counts(steps)
        full = (rows.plan.fill for rows in self.rows.values())
        return self.config.sequence_length * sum(n * f for n, f in zip(counts, full, strict=True))

    def _counts(self, steps: int) -> list[int]:
        """Rows of each source in the first `steps` batches of the run."""
        first = self.config.first_batch * self.config.batch_size
        until = self.mixture.counts(first + steps * self.config.batch_size)
        before = self.mixture.counts(first)
        return [count - earlier for count, earlier in zip(until, before, strict=True)]

    @property
    def fingerprints(self) -> dict[str, str]:
        """What identifies the content of each source, and of what else batches depend on."""
        sources = {name: origin.fingerprint for name, origin in self.origins.items()}
        return sources | self._fingerprints

    @property
    def sidecar_files(self) -> dict[str, bytes]:
        """Files that a model trained on this needs beside its tokenizer."""
        files: dict[str, bytes] = {}
        for rows in self.rows.values():
            files |= {name: text.encode() for name, text in rows.examples.sidecar_files.items()}
        return files

    def statistics(self, steps: int) -> dict[str, SourceStatistics]:
        """By source, what `steps` steps will read; logs a warning for more than 4 epochs.

        Raises:
            ValueError: the sources' capped epochs are fewer than `steps` need.
        """
        counts = self._counts(steps)
        result = {}
        for source, count in zip(self.config.sources, counts, strict=True):
            rows = self.rows[source.name]
            examples, origin = rows.examples, self.origins[source.name]
            epochs = count / len(rows)
            tokens = int(examples.lengths.sum())
            result[source.name] = SourceStatistics(
                format=", ".join(filter(None, (origin.format, origin.note, examples.note))),
                bad_lines=origin.bad_lines,
                documents=examples.documents,
                tokens=tokens,
                bytes=examples.text_bytes(),
                rows=len(rows),
                fill=rows.plan.fill,
                trained_share=float(examples.trained.sum() / tokens),
                truncated=int(examples.truncated.sum()),
                share=count / max(1, steps * self.config.batch_size),
                epochs=epochs,
                tokens_read=epochs * tokens,
            )
            if epochs > _EPOCHS_WORTH:
                logger.warning(
                    "source %r is read %.1f times in %d steps; repeats beyond %g are worth little",
                    source.name,
                    epochs,
                    steps,
                    _EPOCHS_WORTH,
                )
        return result


@dataclasses.dataclass(frozen=True)
class _Batches:
    """One host's batches by their step, as Grain takes a source."""

    pipeline: Pipeline
    rows: Rows | None

    def __len__(self) -> int:
        return len(self.pipeline.mixture) // self.pipeline.config.batch_size

    def __getitem__(self, step: int) -> Batch:
        return self.pipeline.batch(step, self.rows)


def _number_adapters(config: DataConfig, adapters: Sequence[str]) -> dict[str, int]:
    """The number of each source's adapter, by the source's name; none without a bank.

    Raises:
        ValueError: a source that names none of a bank's adapters, or one where there is no bank.
    """
    numbers = {}
    for source in config.sources:
        if adapters and source.adapter not in adapters:
            raise ValueError(
                f"Source {source.name!r}: `adapter` must name one of the bank's adapters "
                f"({', '.join(adapters)}), not {source.adapter!r}."
            )
        if source.adapter is not None and not adapters:
            raise ValueError(
                f"Source {source.name!r} names the adapter {source.adapter!r}, but the method is "
                "no bank of adapters."
            )
        if source.adapter is not None:
            numbers[source.name] = list(adapters).index(source.adapter)
    unused = sorted(set(adapters) - {source.adapter for source in config.sources})
    if unused:
        raise ValueError(f"No source trains the adapters {unused}: give each a source, or drop it.")
    return numbers
