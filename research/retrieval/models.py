"""A run's model, loaded to read passages: batches of few lengths, so of few programs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from research import sharding
from research.batch import bucket_length
from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.models.sites import Context

# Rows of a batch, at least; and the shortest length that rows are padded to.
_ROWS = 16
_SHORTEST = 32


def open_reader(path: str) -> Run:
    """The run in a folder, if its model can read by itself.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is a bank of adapters.
    """
    run = runs.open_run(path)
    if run.method.bank_names:
        raise ValueError(
            f"{path} is a bank of adapters ({', '.join(run.method.bank_names)}): name a run with "
            "one model to read passages"
        )
    return run


@dataclasses.dataclass(frozen=True)
class Reader:
    """A loaded model, and where rows of its batches lie."""

    run: Run
    model: Any
    rows: jax.sharding.NamedSharding
    # rows of a batch: each device has equally many
    batch_size: int

    def batches(self, lengths: Sequence[int], title: str) -> Iterator[tuple[np.ndarray, int]]:
        """Rows that are about equally long, a full batch each, and the length to pad them to.

        The last batch of a length repeats its last row.

        Raises:
          ValueError: a text longer than the model's learned positions.
        """
        sizes = np.asarray([bucket_length(length, _SHORTEST) for length in lengths])
        if len(sizes):
            self.run.model.check_length(int(sizes.max()))
        bar = tqdm(total=len(sizes), desc=title, unit="text", disable=None, leave=False)
        with bar:
            for size in np.unique(sizes)[::-1]:  # what does not fit fails first
                rows = np.flatnonzero(sizes == size)
                for start in range(0, len(rows), self.batch_size):
                    part = rows[start : start + self.batch_size]
                    yield np.pad(part, (0, self.batch_size - len(part)), "edge"), int(size)
                    bar.update(len(part))

    def embed(self, texts: Sequence[str], title: str = "embed") -> np.ndarray:
        """[n,D] float32 the mean of a text's last hidden states, after the final norm.

        A begin token stands in front, which takes the attention that has no other aim; it is no
        part of the mean. A text without a token is zero.
        """
        tokenizer = self.run.tokenizer
        ids = tokenizer.encode_batch(texts)
        vectors = np.zeros((len(texts), self.run.model.width), np.float32)
        for rows, size in self.batches([len(each) + 1 for each in ids], title):
            tokens = np.zeros((len(rows), size), np.int32)
            lengths = np.zeros(len(rows), np.int32)
            for place, row in enumerate(rows):
                tokens[place, : len(ids[row]) + 1] = [tokenizer.begin_id, *ids[row]]
                lengths[place] = len(ids[row]) + 1
            tokens, lengths = jax.device_put((tokens, lengths), self.rows)
            vectors[rows] = np.asarray(_pool(self.model, tokens, lengths))
        if not np.isfinite(vectors).all():
            raise ValueError(f"{self.run.path}: hidden states that are not finite: broken weights")
        return vectors


@contextlib.contextmanager
def load_reader(run: Run) -> Iterator[Reader]:
    """Context with the model of a run, whole on each device."""
    mesh, rules = sharding.MeshConfig().make(), sharding.RULES
    with sharding.mesh_context(mesh, rules):
        shards = sharding.batch_shards(mesh, rules)
        size = -(-_ROWS // shards) * shards
        model = runs.load_model(run, mesh, rules)
        yield Reader(run, model, sharding.batch_sharding(mesh, rules), size)


@jax.jit
def _pool(model: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Tokens [B,S] of texts behind a begin token, with their lengths [B] -> means [B,D]."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    is_token = positions < lengths[:, None]
    hidden, _ = model.hidden(
        tokens, is_token.astype(jnp.int32), positions, None, Context(), shared=False
    )
    is_text = (is_token & (positions > 0)).astype(jnp.float32)
    sums = jnp.einsum("bsd,bs->bd", hidden.astype(jnp.float32), is_text)
    return sums / jnp.maximum(is_text.sum(axis=1), 1)[:, None]
