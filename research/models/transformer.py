"""The decoder: norms, positions, grouped-query attention and MLP, in stacks of layers.

The default shape is Llama's (Touvron 2023, arXiv:2302.13971, 2307.09288); `ModelConfig` has what
other families do differently. Axis letters: B batch, S sequence, D model width, H query heads,
K key/value heads, N head size, F feed-forward width, V vocabulary, L layers, T keys, P prompt
tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from research import sharding, tree
from research.batch import PADDING, SHARED
from research.models import cache, quantization, rotary, sites
from research.models.attention import Mask, attention, cached
from research.models.cache import Cache, KeyValues, Vectors
from research.models.config import ModelConfig, Remat
from research.models.layers import Embedding, Head, Linear, Norm, Positions
from research.models.mlp import MLP
from research.models.products import PRODUCT
from research.models.rotary import Angles
from research.models.sites import Context

INPUT = "input"  # the checkpoint name of a layer's input
# What is kept for the backward pass. `prevent_cse` is for bodies that are not in a scan.
POLICIES: dict[str, Callable[..., Any] | None] = {
    "full": None,
    "products": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def _remat(body: Callable[..., Any], kind: Remat, prevent_cse: bool) -> Callable[..., Any]:
    """The body of a layer with a policy of rematerialization."""
    if kind == "none":
        return body
    return jax.checkpoint(body, prevent_cse=prevent_cse, policy=POLICIES[kind])


@dataclasses.dataclass(frozen=True)
class View:
    """What all layers of one pass share.

    Attributes:
      mask: the attention mask of the new tokens, without a window.
      earlier_mask: that of earlier ones; None where there are none.
      angles: cosines and sines [W,B,S,1,N/2] for each kind of window; None with learned positions.
      keep: whether layers return the keys and values of the new tokens.
    """

    mask: Mask
    earlier_mask: Mask | None
    angles: Angles | None
    keep: bool


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie 2023, arXiv:2305.13245)."""

    def __init__(self, key: jax.Array, config: ModelConfig):
        d, h, k, n = config.width, config.heads, config.kv_heads, config.head_dim
        keys, biases = jax.random.split(key, 4), config.biases
        self.query = Linear(keys[0], d, h * n, ("embed", "heads"), bias="query" in biases)
        self.key = Linear(keys[1], d, k * n, ("embed", "kv_heads"), bias="key" in biases)
        self.value = Linear(keys[2], d, k * n, ("embed", "kv_heads"), bias="value" in biases)
        self.output = Linear(
            keys[3],
            h * n,
            d,
            ("heads", "embed"),
            bias="output" in biases,
            deviation=(2 * config.layers * h * n) ** -0.5,
        )
        self.query_norm = Norm(n, config) if config.head_norms else nnx.data(None)
        self.key_norm = Norm(n, config) if config.head_norms else nnx.data(None)
        self.site = sites.empty()
        self.config = config

    def __call__(
        self, x: jax.Array, view: View, kind: jax.Array, context: Context, earlier: Any
    ) -> tuple[jax.Array, Any]:
        """x [B,S,D] -> ([B,S,D], this layer's new (keys, values) [B,K,S,N] or None).

        Args:
          kind: [] int32, index in `config.window_kinds` of this layer's window.
          earlier: keys and values of earlier tokens, or None.
        """
        config = self.config
        query, key, value = (
            _split_heads(linear(x, context.at(name)), config.head_dim)
            for name, linear in (("query", self.query), ("key", self.key), ("value", self.value))
        )
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if view.angles is not None:
            angles = jax.tree.map(lambda by_kind: by_kind[kind], view.angles)
            query, key = rotary.rotate(query, angles), rotary.rotate(key, angles)
        if config.score_size:  # backends divide by sqrt(N)
            query = query * jnp.asarray((config.head_dim / config.score_size) ** 0.5, query.dtype)
        new = None
        if view.keep:
            new = tuple(Vectors(jnp.swapaxes(part, 1, 2)) for part in (key, value))
        key, value = sites.apply(self.site, x, (key, value), None, context)
        mask = _with_prefix(view.mask, key.shape[1] - view.mask.key_segments.shape[1], context)

        def attend(window: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            own = dataclasses.replace(mask, window=window)
            if view.earlier_mask is None:
                return attention(config.attention, query, key, value, own, config.score_cap)
            before = dataclasses.replace(view.earlier_mask, window=window)
            return cached.attention(query, (key, value), own, earlier, before, config.score_cap)

        # a window is static in a kernel: layers of several kinds select one of several programs
        branches = [functools.partial(attend, window) for window in config.window_kinds]
        if len(branches) == 1:
            y = branches[0](query, key, value)
        else:
            y = jax.lax.switch(kind, branches, query, key, value)
        return self.output(y.reshape(*x.shape[:-1], -1), context.at("output")), new


def _split_heads(y: jax.Array, size: int) -> jax.Array:
    """[B,S,H*N] -> [B,S,H,N]."""
    return y.reshape(*y.shape[:-1], -1, size)


def _prepended_segments(rows: int, count: int, context: Context) -> jax.Array:
    """[B,count] int32, the segment of tokens that methods put in front of rows.

    All documents of a row attend to them; none does in a row that uses no adapter of a bank.
    """
    is_active: Any = True
    if context.adapter is not None:
        is_active = (jnp.asarray(context.adapter) >= 0)[:, None]
    segments = jnp.where(is_active, SHARED, PADDING).astype(jnp.int32)
    return jnp.broadcast_to(segments, (rows, count))


def _with_prefix(mask: Mask, count: int, context: Context) -> Mask:
    """The mask with `count` keys in front, see `_prepended_segments`."""
    if not count:
        return mask
    padding, prefix = ((0, 0), (count, 0)), mask.key_prefix
    segments = _prepended_segments(mask.key_segments.shape[0], count, context)
    return dataclasses.replace(
        mask,
        key_segments=jnp.concatenate([segments, mask.key_segments], axis=1),
        key_positions=jnp.pad(mask.key_positions, padding, constant_values=-1),
        key_prefix=None if prefix is None else jnp.pad(prefix, padding),
        shared=True,
    )


class Residual(nnx.Module):
    """The end of a residual branch: a norm in some families, and a site where a serial or parallel
    adapter may act."""

    def __init__(self, config: ModelConfig):
        self.norm = Norm(config.width, config) if config.post_norms else nnx.data(None)
        self.site = sites.empty()

    def __call__(self, stream, x: jax.Array, y: jax.Array, context: Context) -> jax.Array:
        """stream [B,S,D] + dropout(site(x, norm(y))) for the branch x -> y [B,S,D]."""
        if self.norm is not None:
            y = self.norm(y)
        y = sites.apply(self.site, x, y, None, context)
        return stream + context.drop(y, context.dropout)


class Block(nnx.Module):
    """One layer: attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, key: jax.Array, config: ModelConfig):
        keys = jax.random.split(key, 2)
        self.attention_norm = Norm(config.width, config)
        self.attention = Attention(keys[0], config)
        self.attention_output = Residual(config)
        self.mlp_norm = Norm(config.width, config)
        self.mlp = MLP(keys[1], config)
        self.mlp_output = Residual(config)

    def __call__(self, stream, view: View, kind: jax.Array, context: Context, earlier):
        """stream [B,S,D] -> ([B,S,D], the layer's new keys and values or None)."""
        with jax.named_scope("attention"):
            x = self.attention_norm(stream)
            y, new = self.attention(x, view, kind, context.at("attention"), earlier)
            stream = self.attention_output(stream, x, y, context.at("attention_output"))
        with jax.named_scope("mlp"):
            x = self.mlp_norm(stream)
            y = self.mlp(x, context.at("mlp"))
            stream = self.mlp_output(stream, x, y, context.at("mlp_output"))
        return sharding.constrain(stream, ("batch", "sequence", None)), new


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Projection:
    """The head with the parts of the model that it needs: a tied table, methods' shared modules."""

    head: Head
    table: jax.Array | None
    methods: Any

    def __call__(self, hidden: jax.Array, context: Context | None = None) -> jax.Array:
        """hidden [B,S,D] -> logits [B,S,V], or a head's outputs [B,S,C], in float32."""
        context = dataclasses.replace(context or Context(), shared=self.methods)
        return self.head(hidden, self.table, context.at("head"))


class Transformer(nnx.Module):
    """A decoder whose layers are in stacks, named by `stacks`, such as `("0-23",)`."""

    def __init__(self, key: jax.Array, config: ModelConfig, stacks: tuple[str, ...] | None = None):
        self.config = config
        keys = jax.random.split(key, 3)
        if stacks is None:
            stacks = tree.group(config.layers, lambda i, j: True, config.max_scan_layers)
        size = config.vocabulary, config.width
        self.embedding = Embedding(keys[0], *size, scale=config.embedding_scale)
        self.positions = nnx.data(None)
        if config.learned_positions:
            start = jax.random.fold_in(keys[0], 1)
            self.positions = Positions(start, config.learned_positions, config.width)
        self.layers = nnx.data({name: self._stack(keys[1], name) for name in stacks})
        self.final_norm = Norm(config.width, config)
        self.head = Head(keys[2], config)
        self.methods: OrderedDict[str, nnx.Module] = nnx.data(OrderedDict())
        if config.storage:
            quantization.quantize(self, config.storage)

    def _stack(self, key: jax.Array, name: str) -> Block:
        """One stack of new layers, with a leading layer axis."""
        layers = tree.stack_range(name)
        # a layer's key depends on its number only, so grouping does not change the start
        keys = jax.vmap(lambda layer: jax.random.fold_in(key, layer))(jnp.arange(layers.stop))
        return jax.vmap(lambda key: Block(key, self.config))(keys[layers.start :])

    def hidden(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        prefix: jax.Array | None = None,
        context: Context | None = None,
        earlier: KeyValues | None = None,
        first: bool = True,
        shared: bool = True,
        keep: bool = False,
    ) -> tuple[jax.Array, KeyValues | None]:
        """The last hidden states, after the final norm.

        Args:
          tokens, segments, positions: [B,S] int32, see `research.batch.Batch`.
          prefix: [B,S] bool, tokens that their whole document attends to.
          context: adapters, dropout; None for plain evaluation.
          earlier: keys and values of earlier tokens, in B rows or in one for all of them.
          first: whether these are a row's first tokens, so that attached prompts go in front.
          shared: whether some segment may be -1, which all documents of a row attend to.
          keep: whether to return the keys and values of these tokens, attached prompts included.

        Returns:
          ([B,S,D] in the compute type, what is kept or None).
        """
        config = self.config
        context = dataclasses.replace(context or Context(), shared=self.methods)
        x = self.embedding(tokens, jnp.dtype(config.compute_dtype), context.at("embedding"))
        if not first:
            x = x[:, -tokens.shape[1] :]
        prompts = x.shape[1] - tokens.shape[1]
        if prompts:
            prompt_positions = jnp.broadcast_to(jnp.arange(prompts), (x.shape[0], prompts))
            front = _prepended_segments(x.shape[0], prompts, context)
            positions = positions + prompts * (front[:, :1] == SHARED)
            positions = jnp.concatenate([prompt_positions, positions], axis=1)
            segments = jnp.concatenate([front, segments], axis=1)
            prefix = None if prefix is None else jnp.pad(prefix, ((0, 0), (prompts, 0)))
        mask = Mask(segments, positions, segments, positions, prefix, shared=shared or prompts > 0)
        earlier_mask = None
        if earlier is not None:
            earlier_mask = Mask(segments, positions, earlier.segments, earlier.positions)
        angles = None
        if self.positions is None:
            angles = rotary.angles(positions, config)
        else:
            if not keep and earlier is None:  # decoding checks the length
                config.check_length(x.shape[1])
            x = x + self.positions(positions, x.dtype)
        view = View(mask, earlier_mask, angles, keep)
        x = sharding.constrain(x, ("batch", "sequence", None))
        new = {}
        for layers, block in tree.stacks(self.layers):
            name = tree.stack_key(layers.start, len(layers))
            layer_keys = None if earlier is None else earlier.layers[name]
            x, new[name] = self._run(block, layers, x, view, context, layer_keys)
        new_keys = KeyValues(new, segments, positions) if keep else None
        return self.final_norm(x)[:, prompts:], new_keys

    def _run(self, block, layers, x, view, context, earlier):
        """Runs one stack: a scan, or a plain call for a stack of one."""
        config = self.config

        def body(x, inputs):
            block, layer, kind, earlier = inputs
            x = checkpoint_name(x, INPUT)
            if sharding.platform() == "tpu":
                # without it XLA keeps a copy of all layers' weights in the compute type
                block = jax.lax.optimization_barrier(block)
            return block(x, view, kind, context.at(layer), earlier)

        body = _remat(body, config.remat, prevent_cse=len(layers) == 1)
        kinds = jnp.asarray([config.window_kinds.index(config.window(i)) for i in layers])
        inputs = block, jnp.arange(layers.start, layers.stop), kinds, earlier
        if len(layers) > 1:
            return jax.lax.scan(body, x, inputs)
        x, new = body(x, jax.tree.map(lambda leaf: leaf[0], inputs))
        return x, jax.tree.map(lambda leaf: leaf[None], new)

    def projection(self) -> Projection:
        """What turns hidden states into logits, without the rest of the model."""
        table = self.embedding.kernel[...] if self.config.tie_embeddings else None
        return Projection(self.head, table, self.methods)

    def logits(self, hidden: jax.Array, context: Context | None = None) -> jax.Array:
        """hidden [B,S,D] -> [B,S,V] in float32."""
        return self.projection()(hidden, context)

    def empty_cache(self, rows: int, slots: int, kind: str | None = None) -> Cache:
        """A cache for B = `rows` and T = `slots`; `kind` None: that of the compute type."""
        return cache.empty(self.config, self.layers, rows, slots, kind or self.config.compute_dtype)
