"""Prompt tuning: trained vectors in front of every text (Lester 2021, arXiv:2104.08691)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.config.schema import Name, Positive
from research.methods.attach import attach_at
from research.methods.base import Delta, Method
from research.models.layers import Embedding
from research.models.sites import Context, Weight, Work
from research.models.transformer import Transformer

if TYPE_CHECKING:
    from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Prompt(Method):
    """P vectors that every document of a row sees; positions of the text start after them."""

    # vectors P
    length: Positive = 20
    # random: as large as the table's vectors; vocabulary: tokens drawn from it; text: the tokens of
    # `text`; labels: one vector a label, the mean of its tokens'
    start: Literal["random", "vocabulary", "text", "labels"] = "vocabulary"
    # a text, such as an instruction
    text: str = ""
    # class labels
    labels: tuple[str, ...] = ()
    # the tokens of each vector, which training fills in; repeated or cut to P
    tokens: tuple[tuple[int, ...], ...] = ()
    # the adapter's name
    adapter: Name = "prompt"
    kind: Literal["prompt"] = "prompt"

    def __post_init__(self):
        for start, value in (("text", self.text), ("labels", self.labels)):
            if (self.start == start) != bool(value):
                raise ValueError(f'method: start "{start}" and `{start}` belong together')
        if self.tokens and self.start not in ("text", "labels"):
            raise ValueError(f'method: start "{self.start}" takes no `tokens`')
        if len(self.labels) > self.length:
            raise ValueError(
                f"method: {len(self.labels)} labels do not fit a prompt of length {self.length}"
            )

    def bind(self, tokenizer: Tokenizer) -> Prompt:
        """The method with the tokens of its text or labels.

        Raises:
          ValueError: one of them has no token.
        """
        tokens: tuple[tuple[int, ...], ...]
        if self.start == "text":
            tokens = tuple((token,) for token in tokenizer.encode(self.text))
        elif self.start == "labels":
            tokens = tuple(tuple(tokenizer.encode(label)) for label in self.labels)
        else:
            return self
        if not tokens or not all(tokens):
            raise ValueError(f"method: {self.text or self.labels!r} has no token to start from")
        return dataclasses.replace(self, tokens=tokens)

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        return ((rf"embedding/site/{re.escape(self.adapter)}/vectors", True),)

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        windows = [window for window in model.config.window_kinds if window]
        others = [d for d in model.embedding.site.values() if isinstance(d, PromptVectors)]
        length = self.length + sum(delta.vectors.shape[-2] for delta in others)
        if windows and length >= min(windows):
            raise ValueError(f"a prompt of {length} tokens does not fit a window of {min(windows)}")

        def make(key, weight, *, axes, setting, number):
            return PromptVectors(key, weight, self)

        return attach_at(model, key, (("embedding", True),), self.adapter, make, (Embedding,))


class PromptVectors(Delta):
    """[B,S,D] -> [B,P+S,D], with the vectors [P,D] in front of every row."""

    def __init__(self, key: jax.Array, weight: Weight, method: Prompt):
        table, length = weight.kernel, method.length
        if method.start == "random":
            vectors = jnp.std(table.astype(jnp.float32)) * jax.random.normal(
                key, (length, table.shape[1])
            )
        elif method.start == "vocabulary":
            vectors = table[jax.random.choice(key, table.shape[0], (length,))]
        elif method.tokens:
            rows = [table[jnp.asarray(one)].astype(jnp.float32) for one in method.tokens]
            means = [jnp.mean(vectors, axis=0) for vectors in rows]
            vectors = jnp.stack([means[i % len(means)] for i in range(length)])
        else:
            raise ValueError(f"method: tokens of `{method.start}` are not known; `bind` gives them")
        self.vectors = nnx.Param(vectors.astype(jnp.float32), axes=(None, "embed"))

    def __call__(self, x, y, weight: Weight, context: Context) -> jax.Array:
        vectors = self.vectors[...].astype(y.dtype)
        front = jnp.broadcast_to(vectors, (y.shape[0], *vectors.shape))
        return jnp.concatenate([front, y], axis=1)

    def work(self, weight: Weight, shared: Mapping[str, Any]) -> Work:
        return Work(tokens=self.vectors.shape[0])
