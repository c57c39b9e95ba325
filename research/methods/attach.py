"""Filling the sites of a model by pattern, and choosing which of its leaves train."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from research import tree
from research.methods.base import Method
from research.models.layers import Embedding, Head, Linear
from research.models.sites import Delta, Weight, places
from research.models.transformer import Attention, Residual, Transformer

Axes = tuple[str | None, ...]


class MakeDelta(Protocol):
    """Makes one layer's delta.

    Args:
      weight: the place's weight; None where a place has none.
      axes: the logical axes of its kernel, or of what the place adds to.
      setting: the value of `targets` for it; it decides shapes.
      number: the value of `numbers` for it, [] float32; layers of one stack may differ in it.
    """

    def __call__(
        self,
        key: jax.Array,
        weight: Weight | None,
        *,
        axes: Axes,
        setting: Any,
        number: jax.Array,
    ) -> Delta: ...


# places with a weight, and all that have a site
WEIGHTED = (Linear, Embedding, Head)
PLACES = (*WEIGHTED, Residual, Attention)


def linears(model: Transformer) -> Iterator[tuple[str, Linear]]:
    """The model's linear modules with their names."""
    return places(model, Linear)


def weight_of(model: Transformer, module: Any) -> Weight | None:
    """The weight that a site gets; a tied head's is the embedding's table, transposed."""
    if isinstance(module, Linear):
        return module.weight()
    if isinstance(module, Embedding):
        return Weight(module.kernel[...])
    if isinstance(module, Head):
        is_tied = module.kernel is None
        return Weight(model.embedding.kernel[...].T if is_tied else module.kernel[...])
    return None


def axes_of(module: Any) -> Axes:
    """The logical axes of a place's kernel, or of what the place adds to."""
    return module.axes if isinstance(module, Linear) else _AXES[type(module)]


# of places that do not name their own
_AXES: dict[type, Axes] = {
    Embedding: ("vocabulary", "embed"),
    Head: ("embed", "vocabulary"),
    Residual: ("embed",),
    Attention: ("kv_heads",),
}


def attach_at(
    model: Transformer,
    key: jax.Array,
    targets: tree.Rules[Any],
    adapter: str,
    make: MakeDelta,
    kinds: tuple[type, ...] = WEIGHTED,
    numbers: tree.Rules[float] = (),
) -> Transformer:
    """Fills the sites of places.

    Args:
      targets: ordered (pattern over names of places, setting); the first match decides, and a
        setting of None leaves the place alone.
      adapter: the delta's name in the site.
      make: makes one layer's delta.
      kinds: the classes of modules among which places are sought.
      numbers: ordered (pattern, number); 1 where none matches.

    Raises:
      ValueError: when a pattern matches no place.
    """
    if not targets:
        raise ValueError(f"{adapter}: `targets` is empty; it holds patterns over names of places")
    model = jax.tree.map(lambda leaf: leaf, model)
    modules = dict(places(model, *kinds))
    patterns = [pattern for rules in (targets, numbers) for pattern, _ in rules]
    tree.check_patterns(patterns, modules, f"{adapter}: targets")
    for name, module in modules.items():
        setting = tree.match(targets, name, None)
        if setting is None:
            continue
        if adapter in module.site:
            raise ValueError(f"{name} already has an adapter named {adapter!r}")
        # a layer's key depends on its own name alone, never on how layers are grouped
        seeds = [zlib.crc32(layer.encode()) for layer in tree.layer_names(name)]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(seeds, jnp.uint32))
        layer_numbers = jnp.asarray(tree.match_layers(numbers, name, 1.0), jnp.float32)
        axes, weight = axes_of(module), weight_of(model, module)
        make_one = functools.partial(_make, make, axes, setting)
        try:
            if tree.is_stacked(name):
                module.site[adapter] = jax.vmap(make_one)(keys, weight, layer_numbers)
            else:
                module.site[adapter] = make_one(keys[0], weight, layer_numbers[0])
        except ValueError as error:
            raise ValueError(f"{adapter} at {name}: {error}") from error
    return model


def _make(make: MakeDelta, axes: Axes, setting: Any, key, weight, number) -> Delta:
    """`make` with positional arguments, for `vmap`."""
    return make(key, weight, axes=axes, setting=setting, number=number)


def trainable(model: Transformer, method: Method) -> tuple[str, ...]:
    """The names of the leaves that train.

    Raises:
      ValueError: when a rule matches nothing, or nothing trains.
    """
    names = list(tree.flatten(model))
    tree.check_patterns([pattern for pattern, _ in method.trains], names, "method: trains")
    trainable_names = tuple(name for name in names if tree.match(method.trains, name, False))
    if not trainable_names:
        raise ValueError(f"method: the rules {method.trains} leave nothing to train")
    return trainable_names


def check_full_precision(model: Transformer, names: Iterable[str]) -> None:
    """Refuses to train what a base stores in less than float32.

    Raises:
      ValueError: naming the first of them.
    """
    leaves = tree.flatten(model)
    for name in names:
        if leaves[name].dtype != jnp.float32:
            raise ValueError(
                f"method: {name} would train, but the base stores it in {leaves[name].dtype}, "
                "which loses small changes; attach something to it, or take the base in float32"
            )
