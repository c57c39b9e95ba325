"""Examples as the model sees them, and what all of them are like: what graft inspect shows.

    opened = open_data(experiment)
    for row in read_rows(opened.pipeline, step=0): ...
    summaries = summarise(opened)

Rows come from the run's own `Pipeline.batch(step)`; nothing is made again. `inspection_text` and
`inspection_page` show them on a terminal and as a page.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from research.batch import PADDING, Batch
from research.data import checks, run_checks, token_cache
from research.data.heldout import HeldOut
from research.data.packing.rows import PackedRows
from research.data.pipeline import Pipeline

if TYPE_CHECKING:
    from research.experiment import Experiment
    from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Opened:
    """The data of a run, and what the checks before training find in it."""

    experiment: Experiment
    tokenizer: Tokenizer
    pipeline: Pipeline
    # Names of a bank's adapters, as `Batch.adapter` counts them.
    adapters: tuple[str, ...]
    # (source, split) -> what is held out: `evaluate_split` and `checks.splits` of every source.
    heldout: Mapping[tuple[str, str], HeldOut]
    # Every message that training would refuse the data with.
    faults: tuple[str, ...]


def open_data(experiment: Experiment, splits: Sequence[str] = ()) -> Opened:
    """Opens what a run reads, as `graft train` does, and goes on where that refuses.

    Args:
      experiment: the run's.
      splits: held-out splits beside those that the experiment names.

    Raises:
        ValueError: the data cannot be read at all.
        FileNotFoundError: data, tokenizer or base are not there.
    """
    from research.checkpoints import runs

    base, words = runs.open_base_and_tokenizer(experiment)
    names = experiment.method.bind(words).bank_names
    shape = experiment.model or base.model  # type: ignore[union-attr]  # Experiment checks it
    config = dataclasses.replace(
        experiment.checks, splits=tuple(dict.fromkeys([*experiment.checks.splits, *splits]))
    )
    split, cache = experiment.evaluate_split, token_cache.default_cache()
    with checks.collected() as faults:
        pipeline = Pipeline(experiment.data, words, cache, shape.vocabulary, names)
        run_checks.check_run(pipeline, config, split, cache)
        heldout = {
            (source.name, held): pipeline.heldout(source.name, held)
            for held in run_checks.held_out(split, config.splits)
            for source in experiment.data.sources
            if held != source.split
        }
    return Opened(experiment, words, pipeline, names, heldout, tuple(faults))


@dataclasses.dataclass(frozen=True)
class Unit:
    """One token of a segment."""

    id: int
    # Whether the model is trained to say it.
    trained: bool
    # Its place in the row; None for what a segment says last, which is not read any more.
    place: int | None
    # What attention counts from the segment's beginning: `Batch.positions`.
    position: int | None
    # Whether it sees, and is seen, both ways.
    prefix: bool
    # Where tokens are said at their own place (`masked`): what is said here.
    said: int | None = None


@dataclasses.dataclass(frozen=True)
class Segment:
    """A document, or a piece of one, in a row."""

    # As `Batch.segments` has it.
    number: int
    # Source and split, such as `notes:train`, and the row of it.
    source: str
    row: int
    # The first of its tokens, counted in its example.
    start: int
    units: tuple[Unit, ...]
    # Each token is said at its own place, not at the one before.
    in_place: bool

    @property
    def trained(self) -> int:
        """Tokens that are trained on."""
        return sum(unit.trained for unit in self.units)

    @property
    def read(self) -> int:
        """Tokens that are read."""
        return sum(unit.place is not None for unit in self.units)

    @property
    def prefix(self) -> int:
        """Tokens that see each other both ways; a prefix begins where the segment does."""
        return sum(unit.prefix for unit in self.units)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a batch."""

    step: int
    # Of the global batch.
    number: int
    # S, places of the row.
    length: int
    segments: tuple[Segment, ...]
    # Which of a bank's adapters it uses.
    adapter: str | None = None

    @property
    def filled(self) -> int:
        """Places that hold a token."""
        return sum(segment.read for segment in self.segments)


def read_rows(pipeline: Pipeline, step: int, adapters: Sequence[str] = ()) -> list[Row]:
    """The rows of `pipeline.batch(step)`, with the row of the source behind each segment.

    Args:
      pipeline: the run's.
      step: from 0.
      adapters: names of a bank's adapters.
    """
    batch = pipeline.batch(step)
    rows = []
    for number, (source, packed) in enumerate(pipeline.rows_of(step)):
        adapter = None if batch.adapter is None else adapters[int(batch.adapter[number])]
        segments = tuple(_segments(batch, number, pipeline.rows[source], packed))
        rows.append(Row(step, number, batch.tokens.shape[1], segments, adapter))
    return rows


def _segments(batch: Batch, row: int, rows: PackedRows, packed: int) -> Iterator[Segment]:
    """The segments of a batch's row, which is row `packed` of a source's."""
    fields = {
        field.name: np.asarray(array[row])
        for field in dataclasses.fields(batch)
        if not field.metadata.get("static") and (array := getattr(batch, field.name)) is not None
    }
    numbers, first = fields["segments"], int(rows.plan.offsets[packed])
    for segment in np.unique(numbers[numbers != PADDING]).tolist():
        here = np.flatnonzero(numbers == segment)
        read, said = fields["tokens"][here], fields["targets"][here]
        in_place = not np.array_equal(read[1:], said[:-1])
        # Segments count the pieces of a row from 1.
        piece = first + segment - 1
        yield Segment(
            number=segment,
            source=rows.examples.name,
            row=int(rows.examples.row_of(int(rows.plan.examples[piece]))),
            start=int(rows.plan.starts[piece]),
            units=_units(fields, here, in_place),
            in_place=in_place,
        )


def _units(fields: Mapping[str, np.ndarray], here: np.ndarray, in_place: bool) -> tuple[Unit, ...]:
    """The tokens at some places of a row [S], as they are shown."""
    read, said = fields["tokens"][here], fields["targets"][here]
    trained = fields["weights"][here] > 0
    prefix = fields["prefix"][here] if "prefix" in fields else np.zeros(len(here), bool)
    # A token is trained on where it is said: at the place before it, or at its own.
    marks = trained if in_place else np.append(False, trained)
    units = [
        Unit(
            id=int(read[i]),
            trained=bool(marks[i]),
            place=int(here[i]),
            position=int(fields["positions"][here[i]]),
            prefix=bool(prefix[i]),
            said=int(said[i]) if in_place else None,
        )
        for i in range(len(here))
    ]
    if not in_place:
        units.append(Unit(int(said[-1]), bool(trained[-1]), None, None, False))
    return tuple(units)


def choose_rows(
    opened: Opened,
    most: int,
    *,
    first: int = 0,
    source: str | None = None,
    row: int | None = None,
    text: str | None = None,
) -> list[Row]:
    """The first rows that a run reads, in the order of training.

    Args:
      opened: the run's data.
      most: how many.
      first: the step from which it is looked.
      source: only rows that hold something of the source of this name.
      row: only rows that hold something of this row of a source.
      text: only rows that read or say this text; case counts.

    Raises:
        ValueError: there is no such source, step or row, or the run never reads it.
    """
    data, steps = opened.pipeline, opened.experiment.steps
    if source is not None and source not in data.rows:
        raise ValueError(f"There is no source {source!r}, only {sorted(data.rows)}.")
    if not 0 <= first < steps:
        raise ValueError(f"There is no step {first}: the run has {steps}, from 0.")
    longest = max(rows.examples.documents for rows in data.rows.values())
    if row is not None and not 0 <= row < longest:
        raise ValueError(f"There is no row {row}: the longest source has {longest}, from 0.")
    holding = {
        name: _packed_rows(rows, row) for name, rows in data.rows.items() if source in (None, name)
    }
    found: list[Row] = []
    for step in tqdm(range(first, steps), "look", unit="step", leave=False, disable=None):
        if len(found) >= most:
            break
        places = [name in holding and holding[name][at] for name, at in data.rows_of(step)]
        if not any(places):
            continue
        read = zip(places, read_rows(data, step, opened.adapters), strict=True)
        found += [
            one
            for holds, one in read
            if holds and (text is None or _holds(one, opened.tokenizer, text))
        ]
    if not found and most > 0:
        what = f"row {row}" if row is not None else f"the text {text!r}" if text else "it"
        raise ValueError(
            f"No batch from step {first} to the run's last, {steps - 1}, holds {what}: it comes "
            "later, or was left out."
        )
    return found[:most]


def _packed_rows(rows: PackedRows, row: int | None) -> np.ndarray:
    """[rows of the plan] bool: which hold something of a row of the source, or of any."""
    if row is None:
        return np.ones(len(rows), bool)
    pieces = np.asarray(rows.examples.row_of(rows.plan.examples)) == row
    counts = np.concatenate([[0], np.cumsum(pieces)])
    return np.diff(counts[rows.plan.offsets]) > 0


def _holds(row: Row, words: Tokenizer, text: str) -> bool:
    """Whether one of a row's segments reads or says a text."""
    for segment in row.segments:
        read = [unit.id for unit in segment.units]
        said = [unit.id if unit.said is None else unit.said for unit in segment.units]
        if any(text in words.decode(ids, special=True) for ids in (read, said)):
            return True
    return False


def spell(ids: Sequence[int], words: Tokenizer) -> list[tuple[int, int, str]]:
    """Text of tokens, in the smallest parts that are whole characters: (first, last + 1, text)."""
    taken, parts = 0, []

    def feed() -> Iterator[int]:
        nonlocal taken
        for token in ids:
            taken += 1
            yield token

    first = 0
    for text in words.stream(feed(), special=True):
        parts.append((first, taken, text))
        first = taken
    if first < len(ids):  # Tokens that spell nothing, such as a lone space sign.
        parts.append((first, len(ids), ""))
    return parts


@dataclasses.dataclass(frozen=True)
class Part:
    """Tokens of a segment that are shown as one: whole characters, all alike."""

    units: tuple[Unit, ...]
    text: str
    special: bool
    # What is said in their place, where that is asked for.
    said: str | None

    @property
    def trained(self) -> bool:
        """Whether the model is trained to say it."""
        return self.units[0].trained


def parts(segment: Segment, words: Tokenizer) -> Iterator[Part]:
    """A segment as text. A character of tokens that are not all trained on is shown in pieces."""
    special = words.special_ids

    def kind(unit: Unit) -> tuple[bool, bool, bool]:
        return unit.id in special, unit.trained, unit.prefix

    for first, last, text in spell([unit.id for unit in segment.units], words):
        runs = [tuple(run) for _, run in itertools.groupby(segment.units[first:last], kind)]
        for units in runs:
            alone = words.decode([unit.id for unit in units], special=True)
            said = None
            if segment.in_place and units[0].trained:
                said = words.decode([unit.said or 0 for unit in units], special=True)
            yield Part(units, text if len(runs) == 1 else alone, units[0].id in special, said)


def to_json(row: Row, words: Tokenizer) -> dict[str, Any]:
    """A row as JSON, with the text of every segment and of what is trained on in it."""
    content = dataclasses.asdict(row)
    for segment, made in zip(row.segments, content["segments"], strict=True):
        made["text"] = words.decode([u.id for u in segment.units], special=True)
        said = [u.id if u.said is None else u.said for u in segment.units if u.trained]
        made["trained_text"] = words.decode(said, special=True)
    return content
