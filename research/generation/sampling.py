"""Sampling of the next token from its logits."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of the draw of the next token."""

    # divides the logits; 0 takes the likeliest token
    temperature: float = 0.0
    # draw among the k likeliest tokens; 0 among all
    top_k: int = 0
    # draw among the likeliest tokens that hold this share of probability (arXiv:1904.09751)
    top_p: float = 1.0
    # random seed; a row's draws depend on it, on the row's number and on the token's, alone
    seed: int = 0

    def __post_init__(self):
        in_range = self.temperature >= 0 and 0 < self.top_p <= 1  # also refuses what is no number
        if not (in_range and 0 <= self.top_k < 2**31 and 0 <= self.seed < 2**31):
            raise ValueError(
                f"sampling: temperature {self.temperature} must not be negative, top_p "
                f"{self.top_p} must lie in (0, 1], top_k {self.top_k} and seed {self.seed} in "
                "[0, 2^31)"
            )


GREEDY = Sampling()


def sample(
    logits: jax.Array, keys: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array
) -> jax.Array:
    """Next tokens [B] from logits [B,V], a key and settings [B] for each row.

    A row's draw depends on its own logits, key and settings alone. Tokens that are as likely as
    the last one that `top_k` or `top_p` lets in are in too.
    """
    greedy = jnp.argmax(logits, axis=-1)

    def draw() -> jax.Array:
        is_cut = jnp.any((top_k > 0) | (top_p < 1))
        cut = functools.partial(_cut, logits, temperature, top_k, top_p)
        ranked = jax.lax.cond(is_cut, cut, lambda: logits) / _at_least(temperature)[:, None]
        return jax.vmap(jax.random.categorical)(keys, ranked)

    # what no row asks for is not computed
    samples = jax.lax.cond(jnp.any(temperature > 0), draw, lambda: greedy)
    return jnp.where(temperature > 0, samples, greedy).astype(jnp.int32)


def _at_least(temperature: jax.Array) -> jax.Array:
    return jnp.maximum(temperature, 1e-6)


def _cut(logits: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array):
    """Logits [B,V] with -inf for the tokens that are not drawn among.

    The least likely candidate is found by bisection over the 32 bits of a logit: a pass over the
    vocabulary for each bit costs less than to sort it.
    """
    share = jax.nn.softmax(logits / _at_least(temperature)[:, None], axis=-1)
    order = _as_ordered_integers(logits)

    def lets_in(least: jax.Array) -> jax.Array:
        """[B] whether a token with this order [B] is a candidate, by those that are likelier."""
        likelier = order > least[:, None]
        before = jnp.sum(jnp.where(likelier, share, 0), axis=-1)
        rank = jnp.sum(likelier, axis=-1)
        return (before < top_p) & ((top_k == 0) | (rank < top_k))

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        out, within = bounds  # `out` lets too much in, or is the least of all
        middle = (out & within) + ((out ^ within) >> 1)  # their mean, without overflow
        fits = lets_in(middle)
        return jnp.where(fits, out, middle), jnp.where(fits, middle, within)

    most = jnp.max(order, axis=-1)  # the likeliest token always stays
    least = jnp.full_like(most, jnp.iinfo(jnp.int32).min)
    _, within = jax.lax.fori_loop(0, 32, halve, (least, most))
    return jnp.where(order >= within[:, None], logits, -jnp.inf)


def _as_ordered_integers(x: jax.Array) -> jax.Array:
    """int32 in the order of float32 numbers."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(jnp.int32).max, bits)
