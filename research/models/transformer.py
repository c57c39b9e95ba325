"""The decoder: RMSNorm, rotary positions, grouped-query attention, gated MLP, in derived stacks.

The shape is Llama's (Touvron 2023, arXiv:2302.13971, 2307.09288). Axis letters: B batch,
S sequence, D model width, H query heads, K key/value heads, N head size, F feed-forward width,
V vocabulary, L layers, T keys, P prompt tokens.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research import sharding, tree
from research.batch import SHARED
from research.config import Count, Positive, PositiveNumber
from research.models import sites
from research.models.attention import AUTO, BACKENDS, Mask, attention
from research.models.layers import Embedding, GatedMLP, Head, Linear, RMSNorm, rotary_angles, rotate
from research.models.products import PRODUCT
from research.models.sites import Context


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder and how it is computed."""

    # number of tokens V; at least the tokenizer's, often rounded up
    vocabulary: Positive
    # model width D
    width: Positive
    # number of layers L
    layers: Positive
    # query heads H and key/value heads K; H must be a multiple of K
    heads: Positive
    key_heads: Positive
    # feed-forward width F
    hidden: Positive
    # head size N; 0 means D / H
    head_size: Count = 0
    # base of the rotary frequencies
    rotary_base: PositiveNumber = 10_000.0
    # added to the mean square inside every norm
    norm_epsilon: PositiveNumber = 1e-5
    # whether the head reuses the embedding's table
    tied: bool = True
    # tokens that a query sees back, by layer, repeated cyclically; 0 sees all
    windows: tuple[Count, ...] = (0,)
    # attention backend: auto (the platform's fastest), plain, blocked (CPU) or cudnn (NVIDIA)
    attention: str = AUTO
    # most layers in one scan: 0 no limit (accelerators, deep models), 1 unrolled (fastest on CPU)
    longest_stack: Count = 0
    # what the backward pass recomputes: nothing, everything but layer inputs, all but products;
    # on CPU it saves memory in scans only (XLA there recomputes an unrolled layer at once)
    remat: Literal["none", "full", "products"] = "none"
    # type of activations; parameters stay float32
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if not self.windows:
            raise ValueError("model: `windows` is empty; (0,) lets every layer see everything")
        if min(self.heads, self.key_heads, self.width) < 1:
            return  # the door names the field
        if self.heads % self.key_heads:
            raise ValueError(f"model: {self.heads} heads do not share {self.key_heads} key heads")
        if not self.head_size and self.width % self.heads:
            raise ValueError(f"model: width {self.width} does not divide by {self.heads} heads")
        if self.attention not in (AUTO, *BACKENDS):
            known = ", ".join((AUTO, *BACKENDS))
            raise ValueError(f"model: unknown attention {self.attention!r}; there are: {known}")
        if self.size % 2:
            raise ValueError(f"model: rotary positions need an even head size, not {self.size}")

    @property
    def size(self) -> int:
        """The head size N."""
        return self.head_size or self.width // self.heads

    def window(self, layer: int) -> int:
        return self.windows[layer % len(self.windows)]


# What is kept for the backward pass. `prevent_cse` is for bodies that no scan surrounds.
REMAT: dict[str, Callable[[Any, bool], Any]] = {
    "none": lambda body, prevent_cse: body,
    "full": lambda body, prevent_cse: jax.checkpoint(body, prevent_cse=prevent_cse),
    "products": lambda body, prevent_cse: jax.checkpoint(
        body,
        prevent_cse=prevent_cse,
        policy=jax.checkpoint_policies.save_only_these_names(PRODUCT),
    ),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens seen so far; slot t of every row holds the t-th token fed.

    Attributes:
      layers: stack key -> (keys, values), each [L,B,T,K,N].
      segments, positions: [B,T] int32; segment 0 marks an empty slot.
      index: [] int32, the next slot to fill.
    """

    layers: dict[str, tuple[jax.Array, jax.Array]]
    segments: jax.Array
    positions: jax.Array
    index: jax.Array


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions (Ainslie 2023, arXiv:2305.13245)."""

    def __init__(self, key: jax.Array, config: ModelConfig, window: int):
        d, h, k, n = config.width, config.heads, config.key_heads, config.size
        keys = jax.random.split(key, 4)
        self.query = Linear(keys[0], d, h * n, ("embed", "heads"))
        self.key = Linear(keys[1], d, k * n, ("embed", "key_heads"))
        self.value = Linear(keys[2], d, k * n, ("embed", "key_heads"))
        deviation = (2 * config.layers * h * n) ** -0.5
        self.output = Linear(keys[3], h * n, d, ("heads", "embed"), deviation=deviation)
        self.site = sites.empty()
        self.size, self.window, self.backend = n, window, config.attention

    def __call__(
        self,
        x: jax.Array,
        mask: Mask,
        angles: tuple[jax.Array, jax.Array],
        context: Context,
        cached: tuple[jax.Array, jax.Array] | None,
        index: jax.Array | None,
    ) -> tuple[jax.Array, Any]:
        """x [B,S,D] -> ([B,S,D], this layer's cached (keys, values) [B,T,K,N] or None)."""
        heads = lambda y: y.reshape(*y.shape[:-1], -1, self.size)  # noqa: E731
        query = rotate(heads(self.query(x, context.at("query"))), angles)
        key = rotate(heads(self.key(x, context.at("key"))), angles)
        value = heads(self.value(x, context.at("value")))
        backend = self.backend
        if cached is not None and index is not None:
            append = lambda old, new: jax.lax.dynamic_update_slice_in_dim(  # noqa: E731
                old, new.astype(old.dtype), index, axis=1
            )
            key, value = append(cached[0], key), append(cached[1], value)
            cached, backend = (key, value), "plain"
        key, value = sites.apply(self.site, x, (key, value), None, context)
        mask = _with_prefix(mask, key.shape[1] - mask.key_segments.shape[1], self.window)
        attended = attention(backend, query, key, value, mask)
        return self.output(attended.reshape(*x.shape[:-1], -1), context.at("output")), cached


def _with_prefix(mask: Mask, extra: int, window: int) -> Mask:
    """The mask with `extra` keys in front that every row sees, and the layer's own window."""
    if extra:
        front = ((0, 0), (extra, 0))
        prefix = mask.key_prefix
        mask = dataclasses.replace(
            mask,
            key_segments=jnp.pad(mask.key_segments, front, constant_values=SHARED),
            key_positions=jnp.pad(mask.key_positions, front, constant_values=-1),
            key_prefix=None if prefix is None else jnp.pad(prefix, front),
        )
    return dataclasses.replace(mask, window=window)


class Residual(nnx.Module):
    """The end of a residual branch: a site where a serial or parallel adapter may act."""

    def __init__(self):
        self.site = sites.empty()

    def __call__(self, stream, x: jax.Array, y: jax.Array, context: Context) -> jax.Array:
        """stream [B,S,D] + dropout(site(x, y)) with the branch's input x and output y [B,S,D]."""
        y = sites.apply(self.site, x, y, None, context)
        return stream + context.drop(y, context.dropout)


class Block(nnx.Module):
    """One layer: attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, key: jax.Array, config: ModelConfig, window: int):
        keys = jax.random.split(key, 2)
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attention = Attention(keys[0], config, window)
        self.attention_output = Residual()
        self.mlp_norm = RMSNorm(config.width, config.norm_epsilon)
        self.mlp = GatedMLP(keys[1], config.width, config.hidden, (2 * config.layers) ** -0.5)
        self.mlp_output = Residual()

    def __call__(self, stream, mask, angles, context, cached, index):
        """stream [B,S,D] -> ([B,S,D], the layer's cached keys and values or None)."""
        with jax.named_scope("attention"):
            x = self.attention_norm(stream)
            y, cached = self.attention(x, mask, angles, context.at("attention"), cached, index)
            stream = self.attention_output(stream, x, y, context.at("attention_output"))
        with jax.named_scope("mlp"):
            x = self.mlp_norm(stream)
            y = self.mlp(x, context.at("mlp"))
            stream = self.mlp_output(stream, x, y, context.at("mlp_output"))
        return sharding.constrain(stream, ("batch", None, None)), cached


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Projection:
    """The head and what it shares with the model: the table, if tied, and methods' modules."""

    head: Head
    table: jax.Array | None
    methods: Any

    def __call__(self, hidden: jax.Array, context: Context | None = None) -> jax.Array:
        """hidden [B,S,D] -> logits [B,S,V] in float32."""
        context = dataclasses.replace(context or Context(), shared=self.methods)
        return self.head(hidden, self.table, context.at("head"))


class Transformer(nnx.Module):
    """A decoder whose layers stand in stacks; `stacks` names them, such as `("0-23",)`."""

    def __init__(self, key: jax.Array, config: ModelConfig, stacks: tuple[str, ...] | None = None):
        self.config = config
        keys = jax.random.split(key, 3)
        if stacks is None:
            alike = lambda i, j: config.window(i) == config.window(j)  # noqa: E731
            stacks = tree.group(config.layers, alike, config.longest_stack)
        self.embedding = Embedding(keys[0], config.vocabulary, config.width)
        self.layers = nnx.data({name: self._stack(keys[1], name) for name in stacks})
        self.final_norm = RMSNorm(config.width, config.norm_epsilon)
        self.head = Head(keys[2], config.width, config.vocabulary, config.tied)
        self.methods: OrderedDict[str, nnx.Module] = nnx.data(OrderedDict())

    def _stack(self, key: jax.Array, name: str) -> Block:
        layers = tree.stack_range(name)
        # a layer's key depends on its number alone, so the grouping never changes the start
        keys = jax.vmap(lambda layer: jax.random.fold_in(key, layer))(jnp.arange(layers.stop))
        window = self.config.window(layers.start)
        return jax.vmap(lambda key: Block(key, self.config, window))(keys[layers.start :])

    def hidden(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        prefix: jax.Array | None = None,
        context: Context | None = None,
        cache: Cache | None = None,
        first: bool = True,
    ) -> tuple[jax.Array, Cache | None]:
        """The last hidden states, normalised.

        Args:
          tokens, segments, positions: [B,S] int32, see `research.batch.Batch`.
          prefix: [B,S] bool, tokens that their whole document sees.
          context: adapters, dropout; None for plain evaluation.
          cache: keys and values so far; the S new tokens are appended to it.
          first: whether these are a row's first tokens, so that attached prompts go in front.

        Returns:
          ([B,S,D] in the compute type, the longer cache or None).
        """
        config = self.config
        context = dataclasses.replace(context or Context(), shared=self.methods)
        embedding = self.embedding if first else _without_site(self.embedding)
        x = embedding(tokens, jnp.dtype(config.compute_dtype), context.at("embedding"))
        prompts = x.shape[1] - tokens.shape[1]
        if prompts:
            front = ((0, 0), (prompts, 0))
            start = jnp.broadcast_to(jnp.arange(prompts), (x.shape[0], prompts))
            positions = jnp.concatenate([start, positions + prompts], axis=1)
            segments = jnp.pad(segments, front, constant_values=SHARED)
            prefix = None if prefix is None else jnp.pad(prefix, front)
        index = None
        mask = Mask(segments, positions, segments, positions, prefix)
        if cache is not None:
            index, write = cache.index, jax.lax.dynamic_update_slice_in_dim
            cache = dataclasses.replace(
                cache,
                segments=write(cache.segments, segments, index, 1),
                positions=write(cache.positions, positions, index, 1),
                index=index + x.shape[1],
            )
            mask = Mask(segments, positions, cache.segments, cache.positions)
        angles = rotary_angles(positions, config.size, config.rotary_base)
        x = sharding.constrain(x, ("batch", None, None))
        kept = {}
        for layers, block in tree.stacks(self.layers):
            name = tree.stack_key(layers.start, len(layers))
            cached = None if cache is None else cache.layers[name]
            x, kept[name] = self._run(block, layers, x, mask, angles, context, cached, index)
        if cache is not None:
            cache = dataclasses.replace(cache, layers=kept)
        return self.final_norm(x)[:, prompts:], cache

    def _run(self, block, layers, x, mask, angles, context, cached, index):
        """One stack: a scan, or a plain call for a stack of one."""

        def body(x, inputs):
            block, layer, cached = inputs
            return block(x, mask, angles, context.at(layer), cached, index)

        body = REMAT[self.config.remat](body, len(layers) == 1)
        numbers = jnp.arange(layers.start, layers.stop)
        if len(layers) > 1:
            return jax.lax.scan(body, x, (block, numbers, cached))
        x, cached = body(x, jax.tree.map(lambda leaf: leaf[0], (block, numbers, cached)))
        return x, jax.tree.map(lambda leaf: leaf[None], cached)

    def projection(self) -> Projection:
        """What turns hidden states into logits, apart from the rest of the model."""
        table = self.embedding.kernel[...] if self.config.tied else None
        return Projection(self.head, table, self.methods)

    def logits(self, hidden: jax.Array, context: Context | None = None) -> jax.Array:
        """hidden [B,S,D] -> [B,S,V] in float32."""
        return self.projection()(hidden, context)

    def empty_cache(self, rows: int, length: int) -> Cache:
        """A cache for B = `rows` and T = `length` slots, prompt tokens included."""
        config, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        shape = (rows, length, config.key_heads, config.size)
        layers = {
            name: (jnp.zeros((len(tree.stack_range(name)), *shape), dtype),) * 2
            for name in self.layers
        }
        zeros = jnp.zeros((rows, length), jnp.int32)
        return Cache(layers, zeros, zeros, jnp.zeros((), jnp.int32))


def _without_site(embedding: Embedding) -> Embedding:
    bare = jax.tree.map(lambda leaf: leaf, embedding)
    bare.site = sites.empty()
    return bare
