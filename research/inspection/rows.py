"""Rows of a run's batches as the model sees them, with the source's row behind each segment.

    data = open_data(experiment)
    for row in read_rows(data.pipeline, step=0): ...

Rows come from the run's own `Pipeline.batch(step)`; nothing is made again. `terminal` and `page`
show them, `summary` describes all examples.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from research.batch import PADDING, Batch
from research.checkpoints import runs
from research.data import checks, run_checks, token_cache
from research.data.heldout import HeldOut
from research.data.packing.rows import PackedRows
from research.data.pipeline import Pipeline

if TYPE_CHECKING:
    from research.experiment import Experiment
    from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class RunData:
    """Data of a run, and the faults that the checks before training find in it."""

    experiment: Experiment
    tokenizer: Tokenizer
    pipeline: Pipeline
    # Names of a bank's adapters, as `Batch.adapter` counts them.
    adapters: tuple[str, ...]
    # (source, split) -> held-out data: `evaluate_split` and `checks.splits` of every source.
    heldout: Mapping[tuple[str, str], HeldOut]
    # Messages with which training would refuse the data.
    faults: tuple[str, ...]


def open_data(experiment: Experiment, splits: Sequence[str] = ()) -> RunData:
    """Opens the data of a run as `graft train` does, and goes on where that refuses.

    Args:
      experiment: the run's.
      splits: held-out splits beside those that the experiment names.

    Raises:
        ValueError: the data cannot be read at all.
        FileNotFoundError: data, tokenizer or base are not there.
    """
    base, tokenizer = runs.open_base_and_tokenizer(experiment)
    names = experiment.method.bind(tokenizer).bank_names
    shape = experiment.model or base.model  # type: ignore[union-attr]  # Experiment checks it
    config = dataclasses.replace(
        experiment.checks, splits=tuple(dict.fromkeys([*experiment.checks.splits, *splits]))
    )
    split, cache = experiment.evaluate_split, token_cache.default_cache()
    with checks.collected() as faults:
        pipeline = Pipeline(experiment.data, tokenizer, cache, shape.vocabulary, names)
        sources = experiment.heldout_sources
        run_checks.check_run(pipeline, config, split, cache, sources)
        heldout = {
            (source.name, name): pipeline.heldout(source.name, name)
            for name in run_checks.held_out(split, config.splits)
            for source in experiment.data.sources
            if name != source.split and (not sources or source.name in sources)
        }
    return RunData(experiment, tokenizer, pipeline, names, heldout, tuple(faults))


@dataclasses.dataclass(frozen=True)
class Token:
    """One token of a segment."""

    id: int
    # Whether the model is trained to predict it.
    is_target: bool
    # Its index in the row; None for the last target of a segment, which is not an input.
    index: int | None
    # What attention counts from the segment's beginning: `Batch.positions`.
    position: int | None
    # Whether it sees, and is seen, both ways.
    in_prefix: bool
    # The token that is predicted here, where that happens in place (`masked`).
    target: int | None = None


@dataclasses.dataclass(frozen=True)
class Segment:
    """A document, or a piece of one, in a row."""

    # As in `Batch.segments`.
    number: int
    # Source and split, such as `notes:train`, and the row of it.
    source: str
    row: int
    # The first of its tokens, counted in its example.
    start: int
    tokens: tuple[Token, ...]
    # Whether each token is predicted at its own index, not at the one before.
    in_place: bool
    # What is said of it at its end, where that is no token.
    label: str | None = None

    @property
    def target_count(self) -> int:
        """Number of tokens that are trained on."""
        return sum(token.is_target for token in self.tokens)

    @property
    def input_count(self) -> int:
        """Number of tokens that are inputs of the model."""
        return sum(token.index is not None for token in self.tokens)

    @property
    def prefix_count(self) -> int:
        """Number of tokens that see each other both ways: the first ones of the segment."""
        return sum(token.in_prefix for token in self.tokens)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a batch."""

    step: int
    # Of the global batch.
    number: int
    # S, with padding.
    length: int
    segments: tuple[Segment, ...]
    # Name of the bank's adapter that it uses.
    adapter: str | None = None

    @property
    def input_count(self) -> int:
        """Number of tokens that are inputs of the model; the rest of the row is padding."""
        return sum(segment.input_count for segment in self.segments)

    @property
    def target_count(self) -> int:
        """Number of tokens that are trained on."""
        return sum(segment.target_count for segment in self.segments)


def read_rows(pipeline: Pipeline, step: int, adapters: Sequence[str] = ()) -> list[Row]:
    """The rows of `pipeline.batch(step)`, with the row of the source behind each segment.

    Args:
      pipeline: the run's.
      step: from 0.
      adapters: names of a bank's adapters.
    """
    batch = pipeline.batch(step)
    rows = []
    for number, (source, packed_row) in enumerate(pipeline.rows_of(step)):
        adapter = None if batch.adapter is None else adapters[int(batch.adapter[number])]
        segments = tuple(_segments(batch, number, pipeline.rows[source], packed_row))
        rows.append(Row(step, number, batch.tokens.shape[1], segments, adapter))
    return rows


def _segments(batch: Batch, row: int, rows: PackedRows, packed_row: int) -> Iterator[Segment]:
    """The segments of a batch's row, which is row `packed` of a source's."""
    fields = {
        field.name: np.asarray(array[row])
        for field in dataclasses.fields(batch)
        if not field.metadata.get("static") and (array := getattr(batch, field.name)) is not None
    }
    numbers, first = fields["segments"], int(rows.plan.offsets[packed_row])
    documents = 1 if batch.roles is None else 2  # of an example
    for segment in np.unique(numbers[numbers != PADDING]).tolist():
        places = np.flatnonzero(numbers == segment)
        inputs, targets = fields["tokens"][places], fields["targets"][places]
        # Segments count the documents of a row from 1.
        piece = first + (segment - 1) // documents
        label = rows.examples.label(int(rows.plan.examples[piece]))
        in_place = label is not None or not np.array_equal(inputs[1:], targets[:-1])
        yield Segment(
            number=segment,
            source=rows.examples.name,
            row=int(rows.examples.row_of(int(rows.plan.examples[piece]))),
            start=int(rows.plan.starts[piece]),
            tokens=_tokens(fields, places, in_place, has_target=label is None),
            in_place=in_place,
            label=label,
        )


def _tokens(
    fields: Mapping[str, np.ndarray], places: np.ndarray, in_place: bool, has_target: bool = True
) -> tuple[Token, ...]:
    """The tokens at some places of a row [S], in their order.

    Args:
      fields: arrays [S] of the batch's row, by name.
      places: indices of the segment's inputs.
      in_place: whether each is predicted at its own index, not at the one before.
      has_target: whether what is predicted in place is a token.
    """
    inputs, targets = fields["tokens"][places], fields["targets"][places]
    has_weight = fields["weights"][places] > 0
    in_prefix = fields["prefix"][places] if "prefix" in fields else np.zeros(len(places), bool)
    is_target = has_weight if in_place else np.append(False, has_weight)
    tokens = [
        Token(
            id=int(inputs[i]),
            is_target=bool(is_target[i]),
            index=int(places[i]),
            position=int(fields["positions"][places[i]]),
            in_prefix=bool(in_prefix[i]),
            target=int(targets[i]) if in_place and has_target else None,
        )
        for i in range(len(places))
    ]
    if not in_place:
        tokens.append(Token(int(targets[-1]), bool(has_weight[-1]), None, None, False))
    return tuple(tokens)


def choose_rows(
    data: RunData,
    count: int,
    *,
    first_step: int = 0,
    source: str | None = None,
    row: int | None = None,
    text: str | None = None,
) -> list[Row]:
    """The first rows that a run reads and that hold what is looked for, in the order of training.

    Args:
      data: the run's data.
      count: how many, at most.
      first_step: the step from which rows are read.
      source: only rows that hold something of the source of this name.
      row: only rows that hold something of this row of a source.
      text: only rows with this text among inputs or targets; case counts.

    Raises:
        ValueError: there is no such source, step or row, or the run never reads it.
    """
    pipeline, steps = data.pipeline, data.experiment.steps
    if source is not None and source not in pipeline.rows:
        raise ValueError(f"There is no source {source!r}, only {sorted(pipeline.rows)}.")
    if not 0 <= first_step < steps:
        raise ValueError(f"There is no step {first_step}: the run has {steps}, from 0.")
    longest = max(rows.examples.documents for rows in pipeline.rows.values())
    if row is not None and not 0 <= row < longest:
        raise ValueError(f"There is no row {row}: the longest source has {longest}, from 0.")
    holds_row = {
        name: _packed_rows(rows, row)
        for name, rows in pipeline.rows.items()
        if source in (None, name)
    }
    matches: list[Row] = []
    for step in tqdm(range(first_step, steps), "look", unit="step", leave=False, disable=None):
        if len(matches) >= count:
            break
        is_candidate = [
            name in holds_row and holds_row[name][packed_row]
            for name, packed_row in pipeline.rows_of(step)
        ]
        if not any(is_candidate):
            continue
        rows = read_rows(pipeline, step, data.adapters)
        matches += [
            each
            for candidate, each in zip(is_candidate, rows, strict=True)
            if candidate and (text is None or _contains_text(each, data.tokenizer, text))
        ]
    if not matches and count > 0:
        what = f"row {row}" if row is not None else f"the text {text!r}" if text else "it"
        raise ValueError(
            f"No batch from step {first_step} to the run's last, {steps - 1}, holds {what}: it "
            "comes later, or was left out."
        )
    return matches[:count]


def _packed_rows(rows: PackedRows, row: int | None) -> np.ndarray:
    """Mask [rows of the plan] of those that hold a piece of a row of the source, or of any."""
    if row is None:
        return np.ones(len(rows), bool)
    pieces = np.asarray(rows.examples.row_of(rows.plan.examples)) == row
    counts = np.concatenate([[0], np.cumsum(pieces)])
    return np.diff(counts[rows.plan.offsets]) > 0


def _contains_text(row: Row, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text is among the inputs or the targets of one of a row's segments."""
    for segment in row.segments:
        inputs = [token.id for token in segment.tokens]
        targets = [token.id if token.target is None else token.target for token in segment.tokens]
        if any(text in tokenizer.decode(ids, special=True) for ids in (inputs, targets)):
            return True
        if segment.label is not None and text in segment.label:
            return True
    return False


def decode_characters(ids: Sequence[int], tokenizer: Tokenizer) -> list[tuple[int, int, str]]:
    """Text of tokens in the smallest parts that are whole characters: (first, last + 1, text)."""
    token_count, parts = 0, []

    def feed() -> Iterator[int]:
        nonlocal token_count
        for token in ids:
            token_count += 1
            yield token

    first = 0
    for text in tokenizer.stream(feed(), special=True):
        parts.append((first, token_count, text))
        first = token_count
    if first < len(ids):  # Tokens that spell nothing, such as a lone space sign.
        parts.append((first, len(ids), ""))
    return parts


@dataclasses.dataclass(frozen=True)
class TokenSpan:
    """Tokens of a segment that are shown as one: whole characters, all alike."""

    tokens: tuple[Token, ...]
    text: str
    is_special: bool
    # What is predicted in their place, where the objective does that.
    target_text: str | None

    @property
    def is_target(self) -> bool:
        """Whether the model is trained to predict it."""
        return self.tokens[0].is_target


def token_spans(segment: Segment, tokenizer: Tokenizer) -> Iterator[TokenSpan]:
    """Spans of a segment. A character of tokens that are not all trained on is shown in pieces."""
    special_ids = tokenizer.special_ids

    def kind(token: Token) -> tuple[bool, bool, bool]:
        return token.id in special_ids, token.is_target, token.in_prefix

    for first, last, text in decode_characters([token.id for token in segment.tokens], tokenizer):
        runs = [tuple(run) for _, run in itertools.groupby(segment.tokens[first:last], kind)]
        for tokens in runs:
            own_text = tokenizer.decode([token.id for token in tokens], special=True)
            target_text = None
            if segment.in_place and tokens[0].is_target:
                target_text = segment.label
                if target_text is None:
                    target_text = tokenizer.decode([t.target or 0 for t in tokens], special=True)
            is_special = tokens[0].id in special_ids
            yield TokenSpan(tokens, text if len(runs) == 1 else own_text, is_special, target_text)


def to_json(row: Row, tokenizer: Tokenizer) -> dict[str, Any]:
    """A row as JSON, with the text of every segment and of what is trained on in it."""
    return {
        "step": row.step,
        "number": row.number,
        "length": row.length,
        "segments": [_segment_to_json(segment, tokenizer) for segment in row.segments],
        "adapter": row.adapter,
    }


def _segment_to_json(segment: Segment, tokenizer: Tokenizer) -> dict[str, Any]:
    target_ids = [t.id if t.target is None else t.target for t in segment.tokens if t.is_target]
    return {
        "number": segment.number,
        "source": segment.source,
        "row": segment.row,
        "start": segment.start,
        "units": [
            {
                "id": token.id,
                "trained": token.is_target,
                "place": token.index,
                "position": token.position,
                "prefix": token.in_prefix,
                "said": token.target,
            }
            for token in segment.tokens
        ],
        "in_place": segment.in_place,
        "text": tokenizer.decode([token.id for token in segment.tokens], special=True),
        "trained_text": tokenizer.decode(target_ids, special=True)
        if segment.label is None
        else segment.label,
    }
