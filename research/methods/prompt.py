"""Prompt tuning: trained vectors in front of every text (Lester 2021, arXiv:2104.08691)."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.config import Name, Positive
from research.methods.attaching import attach_at
from research.models.layers import Embedding
from research.models.sites import Context, Weight
from research.models.transformer import Transformer

if TYPE_CHECKING:
    from research.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Prompt:
    """P vectors that every document of a row sees; positions of the text start after them."""

    # vectors P
    length: Positive = 20
    # random: as large as the table's vectors; vocabulary: tokens drawn from it; text: of `text`
    start: Literal["random", "vocabulary", "text"] = "vocabulary"
    # a text, such as an instruction or the class labels; repeated or cut to P tokens
    text: str = ""
    # the tokens of `text`, which training fills in
    tokens: tuple[int, ...] = ()
    # the adapter's name
    adapter: Name = "prompt"
    kind: Literal["prompt"] = "prompt"

    def __post_init__(self):
        if (self.start == "text") != bool(self.text):
            raise ValueError('method: start "text" and a `text` belong together')

    def bind(self, words: Tokenizer) -> Prompt:
        """The method with the tokens of its text.

        Raises:
          ValueError: the text has no token.
        """
        if self.start != "text":
            return self
        tokens = tuple(words.encode(self.text))
        if not tokens:
            raise ValueError(f"method: the text {self.text!r} has no token to start from")
        return dataclasses.replace(self, tokens=tokens)

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        return ((rf"embedding/site/{re.escape(self.adapter)}/vectors", True),)

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        windows = [window for window in model.config.window_kinds if window]
        if windows and self.length >= min(windows):
            raise ValueError(
                f"a prompt of {self.length} tokens does not fit a window of {min(windows)}"
            )

        def make(key, weight, *, axes, setting, number):
            return Vectors(key, weight, self)

        return attach_at(model, key, (("embedding", True),), self.adapter, make, (Embedding,))


class Vectors(nnx.Module):
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
            rounds = -(-length // len(method.tokens))
            vectors = table[jnp.asarray((method.tokens * rounds)[:length])]
        else:
            raise ValueError("method: the tokens of `text` are not known; `bind` gives them")
        self.vectors = nnx.Param(vectors.astype(jnp.float32), axes=(None, "embed"))

    def __call__(self, x, y, weight: Weight, context: Context) -> jax.Array:
        vectors = self.vectors[...].astype(y.dtype)
        front = jnp.broadcast_to(vectors, (y.shape[0], *vectors.shape))
        return jnp.concatenate([front, y], axis=1)
