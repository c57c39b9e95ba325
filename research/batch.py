"""The one thing that objectives make and the train step reads.

B is the number of sequences (rows), S the number of tokens in a row.
"""

import dataclasses

import jax
import numpy as np

Array = jax.Array | np.ndarray

# Values of `Batch.segments` that are not the number of a document.
PADDING = 0
# Seen by every document of its row (prompt-tuning tokens, a shared few-shot prefix).
SHARED = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of packed documents. A pytree; on the host its leaves are numpy arrays.

    `targets[b, s]` is what place s says: as a rule the token that follows `tokens[b, s]` in its
    document, and in masked data the token that belongs at place s itself. Nothing shifts again.
    `data.checks.check_batch` says whether a batch makes sense.
    """

    tokens: Array  # [B, S] int32: what the model reads.
    targets: Array  # [B, S] int32: what it should say there.
    weights: Array  # [B, S] float32: 0 = not trained on.
    segments: Array  # [B, S] int32: 0 padding, 1.. which document, -1 seen by all of them.
    positions: Array  # [B, S] int32: 0, 1, 2 .. along every document (fast attention relies on it).
    prefix: Array | None = None  # [B, S] bool: region whose tokens see each other both ways.
    adapter: Array | None = None  # [B] int32: which attached adapter a row uses.
    # Whether some segment may be -1; static, because fast attention has no such segment.
    shared: bool = dataclasses.field(default=False, kw_only=True, metadata={"static": True})
