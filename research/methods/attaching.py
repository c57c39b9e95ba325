"""What methods share: filling sites by pattern, deriving stacks, choosing what trains, merging."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from research import tree
from research.models.config import ModelConfig
from research.models.layers import Linear
from research.models.sites import Weight
from research.models.transformer import Transformer


class MakeDelta(Protocol):
    """Makes one layer's delta from a key, the linear's weight, its axes and its setting."""

    def __call__(
        self, key: jax.Array, weight: Weight, *, axes: tuple[str | None, ...], setting: Any
    ) -> nnx.Module: ...


class Method(Protocol):
    """See the package's docstring; `kind` is its name in the registry and in configs."""

    @property
    def kind(self) -> str: ...

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        """Ordered rules over parameter names; what no rule matches stays frozen."""

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        """A copy of the model with this method's parameters in its sites."""


def linears(model: Transformer) -> Iterator[tuple[str, Linear]]:
    """The model's linear modules with their names, such as `layers/0-23/mlp/up`."""
    is_linear = lambda node: isinstance(node, Linear)  # noqa: E731
    for path, node in jax.tree_util.tree_flatten_with_path(model, is_leaf=is_linear)[0]:
        if is_linear(node):
            yield tree.join(path), node


def attach_to_linears(
    model: Transformer,
    key: jax.Array,
    targets: tree.Rules[Any],
    adapter: str,
    make: MakeDelta,
) -> Transformer:
    """Fills the sites of linears.

    Args:
      targets: ordered (pattern over linear names, setting); the first match decides, and a
        setting of None leaves the linear alone.
      adapter: the delta's name in the site.
      make: makes one layer's delta.

    Raises:
      ValueError: when a pattern matches no linear.
    """
    model = jax.tree.map(lambda leaf: leaf, model)
    found = dict(linears(model))
    tree.check_patterns([pattern for pattern, _ in targets], found, f"{adapter}: targets")
    for name, linear in found.items():
        setting = tree.match(targets, name, None)
        if setting is None:
            continue
        if adapter in linear.site:
            raise ValueError(f"{name} already has an adapter named {adapter!r}")
        axes = linear.kernel.get_metadata()["axes"]
        # a layer's key depends on its own name alone, never on how layers are grouped
        seeds = [zlib.crc32(layer.encode()) for layer in tree.layer_names(name)]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(seeds, jnp.uint32))
        delta = functools.partial(make, axes=axes, setting=setting)
        if tree.is_stacked(name):
            linear.site[adapter] = jax.vmap(delta)(keys, linear.weight())
        else:
            linear.site[adapter] = delta(keys[0], linear.weight())
    return model


def trainable(model: Transformer, method: Method) -> tuple[str, ...]:
    """The names of the leaves that train.

    Raises:
      ValueError: when a rule matches nothing, or nothing trains.
    """
    names = list(tree.flatten(model))
    tree.check_patterns([pattern for pattern, _ in method.trains], names, "method: trains")
    chosen = tuple(name for name in names if tree.match(method.trains, name, False))
    if not chosen:
        raise ValueError(f"method: the rules {method.trains} leave nothing to train")
    return chosen


def derive_stacks(config: ModelConfig, method: Method) -> tuple[str, ...]:
    """The fewest stacks that the layers can form with this method, such as `("0-21", "22-23")`.

    Layers share a stack when their modules, sites, shapes and trainability are alike. That is
    read off an abstract model of single layers, so it needs no special cases.

    Raises:
      ValueError: from the method, when it does not fit the model; nothing is computed before.
    """
    single = tuple(tree.stack_key(layer, 1) for layer in range(config.layers))

    def build(key: jax.Array) -> Transformer:
        return method.attach(Transformer(key, config, single), key)

    probe = jax.eval_shape(build, jax.random.key(0))
    chosen = set(trainable(probe, method))

    def kind(name: str) -> Any:
        leaves, structure = jax.tree.flatten(probe.layers[name])
        parameters = tree.flatten(probe.layers[name])
        trains = tuple(f"layers/{name}/{leaf}" in chosen for leaf in parameters)
        return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves), trains

    kinds = [kind(name) for name in single]
    alike = lambda i, j: kinds[i] == kinds[j]  # noqa: E731
    return tree.group(config.layers, alike, config.longest_stack)


def merge(model: Transformer, adapter: str) -> Transformer:
    """A copy whose weights hold what the adapter did, computed in float32, its sites emptied.

    Raises:
      ValueError: when nothing of that name is attached, or a delta cannot be merged.
    """
    model = jax.tree.map(lambda leaf: leaf, model)
    merged = 0
    for name, linear in linears(model):
        delta = linear.site.pop(adapter, None)
        if delta is None:
            continue
        if not hasattr(delta, "merged"):
            raise ValueError(f"{name}: {type(delta).__name__} cannot be merged into its weight")
        run = lambda delta, weight: delta.merged(weight)  # noqa: E731
        weight = (jax.vmap(run) if tree.is_stacked(name) else run)(delta, linear.weight())
        axes = linear.kernel.get_metadata()["axes"]
        linear.kernel = nnx.Param(weight.kernel, axes=axes)
        if weight.bias is not None:
            linear.bias = nnx.Param(weight.bias, axes=axes[1:])
        merged += 1
    if not merged:
        raise ValueError(f"no adapter named {adapter!r} is attached to a linear of this model")
    return model
