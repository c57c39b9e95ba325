"""What can be wrong with data, said before any compute is spent on it."""

import numpy as np

from research.batch import SHARED, Batch
from research.data.tokenizer import Tokenizer
from research.objectives.base import Examples

# Examples of a source that are looked at, evenly spread.
_SAMPLE = 64


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
    """Looks at a sample of examples as the model will see them.

    Raises:
        ValueError: no token is trained on, end-of-text never is (where the objective promises
          it), or the begin token comes twice in a row.
    """
    name = examples.name
    check_not_empty(name, len(examples))
    if examples.bytes is not None and not examples.bytes.sum():
        raise ValueError(f"Source {name!r} has only empty texts: there is nothing to learn from.")
    if not examples.trained.sum():
        raise ValueError(f"Source {name!r} has no token to train on: all of its text is masked.")
    stops = examples.stops or (tokenizer.end_id,)
    ends = False
    filled = np.flatnonzero(examples.lengths)
    sample = filled[:: max(1, len(filled) // _SAMPLE)]
    if examples.rows is not None:  # Only the last example of a row ends as the row does.
        final = np.searchsorted(examples.rows, examples.rows[sample], side="right") - 1
        sample = np.union1d(sample, final[examples.lengths[final] > 0])
    for index in sample.tolist():
        length = int(examples.lengths[index])
        first = examples.piece(index, 0, min(length, window))
        last = examples.piece(index, max(0, length - window), length)
        begin = first.tokens == tokenizer.begin_id
        if np.any(begin[:-1] & begin[1:]):
            raise ValueError(
                f"Source {name!r}, row {examples.row_of(index)} has the begin token twice in a "
                "row. The objective adds it: remove it from the template, or name another token "
                "as begin."
            )
        ends = ends or bool(last.targets[-1] in stops and last.weights[-1] > 0)
    if examples.ends and not ends:
        raise ValueError(
            f"Source {name!r} never trains end-of-text (id {stops[0]}), as seen in a "
            "sample of it: a model trained on it would never stop writing."
        )


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
    wanted = {
        "tokens": np.int32,
        "targets": np.int32,
        "weights": np.float32,
        "segments": np.int32,
        "positions": np.int32,
    } | ({"prefix": np.bool_} if batch.prefix is not None else {})
    if len(shape) != 2:
        raise ValueError(f"{where}: tokens must be [B, S], not of shape {shape}.")
    for field, dtype in wanted.items():
        array = np.asarray(getattr(batch, field))
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"{where}: {field} must be {np.dtype(dtype)} of shape {shape}, "
                f"not {array.dtype} of shape {array.shape}."
            )
    if batch.adapter is not None and np.shape(batch.adapter) != shape[:1]:
        raise ValueError(f"{where}: adapter must have shape {shape[:1]}.")
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
    if segments.min() < SHARED:
        raise ValueError(f"{where}: segment {segments.min()} has no meaning.")
    if weights[segments == 0].any():
        raise ValueError(f"{where}: padding has weight, so it would be trained on.")
    if not weights.any():
        raise ValueError(
            f"{where}: no token is trained on (all {weights.size} weights are 0): every completion "
            "is empty or cut off, or the objective masks everything."
        )
