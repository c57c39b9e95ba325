"""What can be wrong with examples and batches, said before any compute is spent on them.

`research.data.run_checks` has what only a whole run shows: its template, its held-out splits.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from research.batch import SHARED, Batch
from research.objectives.base import Examples, name_rows
from research.text.tokenizer import Tokenizer

# Examples of a source that are looked at, evenly spread: all of a labelled set of a usual size, in
# a few tenths of a second; and fewer of documents, which objectives cut and write alike, and which
# may be far away.
_SAMPLE, _DOCUMENTS = 8192, 512

_faults: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("faults", default=None)


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """What checks find in the block, as a list and not as an error: to look at such data."""
    faults: list[str] = []
    token = _faults.set(faults)
    try:
        yield faults
    finally:
        _faults.reset(token)


def refuse(message: str) -> None:
    """Raises ValueError; within `collected` it only notes the message."""
    faults = _faults.get()
    if faults is None:
        raise ValueError(message)
    if message not in faults:
        faults.append(message)


def check_vocabulary(tokenizer: Tokenizer, model_vocabulary: int) -> None:
    """Raises ValueError if the tokenizer has ids that the model has no embedding for."""
    if tokenizer.vocabulary_size > model_vocabulary:
        raise ValueError(
            f"The tokenizer has {tokenizer.vocabulary_size} tokens, but the model's vocabulary "
            f"only {model_vocabulary}: raise the model's vocabulary to at least "
            f"{tokenizer.vocabulary_size} or train a smaller tokenizer."
        )


def check_not_empty(name: str, examples: int) -> None:
    """Raises ValueError for a source without examples."""
    if not examples:
        raise ValueError(f"Source {name!r} is empty: there is nothing to learn from.")


def check_examples(examples: Examples, tokenizer: Tokenizer, window: int) -> None:
    """Looks at examples as the model will see them; many of them, evenly spread.

    Raises:
        ValueError: names the rows in which no token is trained on, end-of-text is not (where the
          objective promises it), an answer is cut off, padding is trained on, the begin token
          comes twice in a row, or an id is outside the vocabulary; or all texts are equal.
    """
    name = examples.name
    check_not_empty(name, len(examples))
    if not examples.lengths.any():  # Not even to be looked at.
        raise ValueError(
            f"Source {name!r} has no token to train on: all of its examples are empty, or too "
            "long and left out."
        )
    if not examples.trained.sum():
        refuse(f"Source {name!r} has no token to train on: all of its text is masked.")
        return
    if examples.bytes is not None and not examples.bytes.sum():
        refuse(f"Source {name!r} has only empty texts: there is nothing to learn from.")
    nonempty = np.flatnonzero(examples.lengths)
    idle = nonempty[examples.trained[nonempty] == 0]
    if len(idle):
        refuse(
            f"{_name(examples, idle)} no token to train on, though the model would read it. The "
            "objective masks all of it: remove these rows, or change the objective's settings."
        )
    sample = nonempty[:: -(-len(nonempty) // (_SAMPLE if examples.are_rows else _DOCUMENTS))]
    last = np.ones(len(examples), bool)
    if (
        examples.rows is not None and not examples.complete
    ):  # Only the last example of a row ends as the row does.
        last = np.append(np.diff(examples.rows) > 0, True)
        final = np.searchsorted(examples.rows, examples.rows[sample], side="right") - 1
        sample = np.union1d(sample, final[examples.lengths[final] > 0])
    wrong = _look(examples, sample, last, tokenizer, window)
    if wrong.doubled:
        refuse(
            f"{_name(examples, wrong.doubled)} the begin token twice in a row. The objective adds "
            "it: remove it from the template, or name another token as begin."
        )
    if wrong.padded:
        refuse(
            f"{_name(examples, wrong.padded)} padding (id {tokenizer.pad_id}) that is trained on: "
            "the model would learn to write it. Remove it from the template."
        )
    if wrong.outside:
        refuse(
            f"{_name(examples, wrong.outside)} ids outside the vocabulary of "
            f"{tokenizer.vocabulary_size}."
        )
    stop = (examples.stops or (tokenizer.end_id,))[0]
    if examples.ends and wrong.endless and not wrong.ended:
        refuse(
            f"Source {name!r} never trains end-of-text (id {stop}), as seen in "
            f"{len(sample):,} of its examples: a model trained on it would never stop writing."
        )
    elif examples.ends and wrong.endless:
        refuse(
            f"{_name(examples, wrong.endless)} an answer that is cut off: its end (id {stop}) is "
            "not trained on, so the model would learn to stop in mid-sentence. Use a longer "
            "sequence_length, or remove these rows."
        )
    if wrong.alike:
        refuse(
            f"Source {name!r}: all of its {len(nonempty):,} texts are equal, as seen in "
            f"{len(sample):,} of them. Name other `fields`, or keep one row."
        )


@dataclasses.dataclass
class _Faults:
    """Numbers of examples that are wrong, by how."""

    doubled: list[int] = dataclasses.field(default_factory=list)
    padded: list[int] = dataclasses.field(default_factory=list)
    outside: list[int] = dataclasses.field(default_factory=list)
    endless: list[int] = dataclasses.field(default_factory=list)
    ended: int = 0
    alike: bool = False


def _look(
    examples: Examples, sample: np.ndarray, last: np.ndarray, tokenizer: Tokenizer, window: int
) -> _Faults:
    """Reads the beginning and the end of examples; `last` [N] says which end a row."""
    faults = _Faults(alike=len(np.unique(examples.row_of(sample))) > 1)
    stops = examples.stops or (tokenizer.end_id,)
    # A tokenizer may pad with what ends a text.
    pads = tokenizer.pad_id not in (*stops, tokenizer.end_id) and not examples.are_sampled
    says_tokens = examples.labels is None
    before = None
    for index in sample.tolist():
        length = int(examples.lengths[index])
        first = end = examples.piece(index, 0, min(length, window))
        if length > window:
            end = examples.piece(index, length - window, length)
        begin = first.tokens == tokenizer.begin_id
        if np.any(begin[:-1] & begin[1:]) and not examples.are_sampled:
            faults.doubled.append(index)
        trained_targets = end.targets[end.weights > 0]
        if pads and says_tokens and np.any(trained_targets == tokenizer.pad_id):
            faults.padded.append(index)
        for ids in (first.tokens, end.targets):
            if ids.min() < 0 or ids.max() >= tokenizer.vocabulary_size:
                faults.outside.append(index)
        if last[index] and end.weights[-1] > 0 and end.targets[-1] in stops:
            faults.ended += 1
        elif last[index]:
            faults.endless.append(index)
        if faults.alike:
            text = first.targets if says_tokens else first.tokens
            faults.alike = before is None or np.array_equal(before, text)
            before = text
    return faults


def _name(examples: Examples, wrong: Sequence[int] | np.ndarray) -> str:
    """The beginning of a sentence about examples, by their rows: `Source 's', rows 3, 8 have`."""
    rows = np.unique(examples.row_of(np.asarray(wrong)))
    have = "has" if len(rows) == 1 else "have"
    return f"Source {examples.name!r}, {name_rows(rows)} {have}"


def check_batch(batch: Batch, vocabulary: int, where: str = "batch") -> None:
    """Whether a whole batch (of all hosts) can be trained on.

    Args:
      batch: leaves on the host.
      vocabulary: ids must be below it.
      where: named in errors.

    Raises:
        ValueError: shapes or types do not fit, ids are out of range, weights are not finite,
          padding is trained on, or nothing is.
    """
    shape = batch.tokens.shape
    types = {
        "tokens": np.int32,
        "targets": np.int32,
        "weights": np.float32,
        "segments": np.int32,
        "positions": np.int32,
    } | ({"prefix": np.bool_} if batch.prefix is not None else {})
    if len(shape) != 2:
        raise ValueError(f"{where}: tokens must be [B, S], not of shape {shape}.")
    for field, dtype in types.items():
        array = np.asarray(getattr(batch, field))
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"{where}: {field} must be {np.dtype(dtype)} of shape {shape}, "
                f"not {array.dtype} of shape {array.shape}."
            )
    if batch.adapter is not None and np.shape(batch.adapter) != shape[:1]:
        raise ValueError(f"{where}: adapter must have shape {shape[:1]}.")
    if batch.adapter is not None and np.min(batch.adapter) < -1:
        raise ValueError(f"{where}: adapter {np.min(batch.adapter)}; -1 is none, others count up.")
    for field in ("tokens", "targets"):
        array = np.asarray(getattr(batch, field))
        if array.min() < 0 or array.max() >= vocabulary:
            raise ValueError(
                f"{where}: {field} run from {array.min()} to {array.max()}, outside the "
                f"vocabulary of {vocabulary}."
            )
    weights, segments = np.asarray(batch.weights), np.asarray(batch.segments)
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise ValueError(f"{where}: weights must be finite and not negative.")
    if segments.min() == SHARED and not batch.shared:
        raise ValueError(
            f"{where}: segment {SHARED} is in a batch that says it has none (`shared`)."
        )
    if segments.min() < SHARED:
        raise ValueError(f"{where}: segment {segments.min()} has no meaning.")
    padded = np.flatnonzero((weights * (segments == 0)).any(axis=1))
    if len(padded):
        refuse(f"{where}: padding has weight in {name_rows(padded)}, so it would be trained on.")
    if not weights.any():
        refuse(
            f"{where}: no token is trained on (all {weights.size} weights are 0): every completion "
            "is empty or cut off, or the objective masks everything."
        )
