"""Attached adapters merged into weights, taken out again, or switched off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from flax import nnx

from research import tree
from research.methods.attach import PLACES, axes_of, weight_of
from research.models.layers import Embedding, Head
from research.models.sites import Delta, Weight, places
from research.models.transformer import Transformer


def merge(model: Transformer, adapter: str) -> Transformer:
    """A copy whose weights hold what the adapter did, computed in float32, its sites emptied.

    Raises:
      ValueError: when nothing of that name is attached, a delta cannot be merged, or another acts
        before it on the same weight.
    """
    model = jax.tree.map(lambda leaf: leaf, model)
    for name, module in places(model, Embedding, Head):
        check_untied(name, model.config.tie_embeddings and adapter in module.site)
    shared = dict(model.methods)
    if not merge_sites(model, adapter, shared, lambda module: weight_of(model, module)):
        raise ValueError(f"no adapter named {adapter!r} is attached to a weight of this model")
    model.methods.pop(adapter, None)
    return model


def switch_off(model: Transformer, adapter: str) -> Transformer:
    """A copy without an adapter: the base with what else is attached to it.

    Raises:
      ValueError: nothing of that name is attached.
    """
    model = jax.tree.map(lambda leaf: leaf, model)
    if not list(_pop(model, adapter)):
        names = sorted({name for _, module in places(model, *PLACES) for name in module.site})
        raise ValueError(f"no adapter named {adapter!r} is attached; there are: {names}")
    model.methods.pop(adapter, None)
    return model


def check_untied(name: str, is_tied: bool) -> None:
    """Refuses to merge into a table that embedding and head share.

    Raises:
      ValueError: they share one.
    """
    if is_tied:
        raise ValueError(
            f"{name}: embedding and head share a table; merging into it would change both"
        )


def merge_sites(
    part: Any, adapter: str, shared: Mapping[str, Any], weight: Callable[[Any], Weight | None]
) -> dict[str, Any]:
    """Merges an adapter into the weights of a model or a part of it, in place.

    Args:
      shared: what methods share between sites.
      weight: the weight of a place.

    Returns:
      What unmerging needs beside the adapter, by place: arrays by name (`unmerge_residual`).

    Raises:
      ValueError: a delta cannot be merged, or another acts before it on the same weight.
    """
    residuals = {}
    for name, module in places(part, *PLACES):
        first = next(iter(module.site), adapter)
        if adapter in module.site and first != adapter:
            raise ValueError(f"{name}: {adapter!r} acts on what {first!r} gives; merge that first")
    for name, module, delta in _pop(part, adapter):
        if not delta.mergeable:
            raise ValueError(f"{name}: {type(delta).__name__} cannot be merged into a weight")

        def merge_one(delta: Delta, weight: Weight) -> tuple[Weight, dict[str, jax.Array]]:
            return delta.merge_into(weight, shared), delta.unmerge_residual(weight, shared)

        new_weight, residuals[name] = _over_layers(name, merge_one)(delta, weight(module))
        _set_weight(module, new_weight)
    return residuals


def unmerge_sites(
    part: Any,
    adapter: str,
    shared: Mapping[str, Any],
    weight: Callable[[Any], Weight | None],
    residuals: Mapping[str, Any],
) -> None:
    """Takes an adapter out of weights in which it is merged, in place.

    Args:
      residuals: what `merge_sites` returned.
    """

    def unmerge_one(delta: Delta, weight: Weight, residual: Mapping[str, jax.Array]) -> Weight:
        return delta.unmerge_from(weight, shared, residual)

    for name, module, delta in _pop(part, adapter):
        residual = residuals.get(name, {})
        _set_weight(module, _over_layers(name, unmerge_one)(delta, weight(module), residual))


def _pop(part: Any, adapter: str) -> Iterator[tuple[str, Any, Delta]]:
    """Removes an adapter from its places: (name, place, delta) of each."""
    for name, module in places(part, *PLACES):
        delta = module.site.pop(adapter, None)
        if delta is not None:
            yield name, module, delta


def _over_layers(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one layer's delta, or of a stack's."""
    return jax.vmap(function) if tree.is_stacked(name) else function


def _set_weight(module: Any, weight: Weight) -> None:
    axes = axes_of(module)
    module.kernel = nnx.Param(weight.kernel, axes=axes)
    if weight.bias is not None:
        module.bias = nnx.Param(weight.bias, axes=axes[1:])
