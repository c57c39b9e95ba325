"""The batch: what objectives make and the train step reads.

B is the number of sequences (rows), S the number of tokens in a row.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

Array = jax.Array | np.ndarray

# Values of `Batch.segments` that are not the number of a document.
PADDING = 0
# Seen by every document of its row (prompt-tuning tokens, a shared few-shot prefix).
SHARED = -1

# Of `Batch.adapter`: a row that uses no adapter.
NO_ADAPTER = -1

# Values of `Batch.roles`: what the targets are of. 0 is nothing of these.
GOOD = 1  # an answer that is to become likelier
BAD = 2  # one that is to become less likely
MISMATCHED = 3  # an answer to another prompt: only its likelihood is read


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of packed documents. A pytree; on the host its leaves are numpy arrays.

    `targets[b, s]` is the token to predict at position s: as a rule the one that follows
    `tokens[b, s]` in its document, in masked data the one that belongs at s itself; where a head
    says a document's class, that class at the last token. Nothing shifts again.
    `data.checks.check_batch` tells whether a batch is consistent.
    """

    tokens: Array  # [B,S] int32: the model's input.
    targets: Array  # [B,S] int32: the token to predict at each position.
    weights: Array  # [B,S] float32: weight of each target in the loss; 0 = not trained on.
    segments: Array  # [B,S] int32: 0 padding, 1.. number of the document, -1 seen by all of them.
    positions: Array  # [B,S] int32: 0, 1, 2 .. along every document (fast attention relies on it).
    prefix: Array | None = None  # [B,S] bool: region with bidirectional attention.
    adapter: Array | None = None  # [B] int32: which attached adapter a row uses.
    # Of preferences: an example is two documents that follow each other, numbered from an odd one.
    roles: Array | None = None  # [B,S] int32: GOOD and so on, of the answers' targets.
    # [B,S] float32: log-probability of each target by the model at the run's start
    reference: Array | None = None
    # [B,S] float32: of rollouts each target's advantage; of documents with a number, that number at
    # the last token
    values: Array | None = None
    # Of a teacher: its likeliest tokens at each position, and their log-probabilities; the last is
    # that of all other tokens together.
    teacher_tokens: Array | None = None  # [B,S,K] int32
    teacher_log_probs: Array | None = None  # [B,S,K+1] float32
    # Whether some segment may be -1; static, because fast attention has no such segment.
    shared: bool = dataclasses.field(default=False, kw_only=True, metadata={"static": True})
    # No row has more targets with a weight; evaluation gives the others no likelihood then. Static;
    # None: all of them may have one.
    most_targets: int | None = dataclasses.field(
        default=None, kw_only=True, metadata={"static": True}
    )


def bucket_length(length: int, shortest: int = 64, longest: int = 0) -> int:
    """The length to which rows of so many tokens are padded, so that few programs serve all.

    Args:
      length: tokens of the longest row.
      shortest: a power of two; then follow half as much again, twice as much, and so on: 64, 96,
        128, 192, 256.
      longest: the result is no more; 0: it may be anything.
    """
    sizes = (size for power in itertools.count() for size in (2 << power, 3 << power))
    size = next(size for size in sizes if size >= max(length, shortest))
    return min(size, longest) if longest else size


def longest_first(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Numbers of rows, `size` at a time at most, of which those together are about equally long."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for start in range(0, len(order), size):
        yield order[start : start + size]
