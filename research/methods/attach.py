"""What methods share: filling sites by pattern, deriving stacks, choosing what trains, merging."""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from research import tree
from research.methods.base import Method
from research.models.config import ModelConfig
from research.models.layers import Embedding, Head, Linear
from research.models.sites import Weight, places
from research.models.transformer import Attention, Residual, Transformer


class MakeDelta(Protocol):
    """Makes one layer's delta.

    Args:
      weight: the place's weight; None where a place has none.
      axes: the logical axes of its kernel, or of what the place adds to.
      setting: what `targets` say; it decides shapes.
      number: what `numbers` say, [] float32; layers of one stack may differ in it.
    """

    def __call__(
        self,
        key: jax.Array,
        weight: Weight | None,
        *,
        axes: tuple[str | None, ...],
        setting: Any,
        number: jax.Array,
    ) -> nnx.Module: ...


# places with a weight, and all that have a site
WEIGHTED = (Linear, Embedding, Head)
PLACES = (*WEIGHTED, Residual, Attention)


def linears(model: Transformer) -> Iterator[tuple[str, Linear]]:
    """The model's linear modules with their names."""
    return places(model, Linear)


# before a pattern over names of parameters: of what no method attached
OF_THE_BASE = "(?!(.*/)?site/|methods/)"


def attached(name: str) -> bool:
    """Whether a parameter is something that a method attached, by its name."""
    return re.match(OF_THE_BASE, name) is None


def weight_of(model: Transformer, module: Any) -> Weight | None:
    """The weight that a site sees; a tied head's is the embedding's table, turned."""
    if isinstance(module, Linear):
        return module.weight()
    if isinstance(module, Embedding):
        return Weight(module.kernel[...])
    if isinstance(module, Head):
        tied = module.kernel is None
        return Weight(model.embedding.kernel[...].T if tied else module.kernel[...])
    return None


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
      kinds: which modules are asked.
      numbers: ordered (pattern, number); 1 where none matches.

    Raises:
      ValueError: when a pattern matches no place.
    """
    if not targets:
        raise ValueError(f"{adapter}: `targets` is empty; it holds patterns over names of places")
    model = jax.tree.map(lambda leaf: leaf, model)
    found = dict(places(model, *kinds))
    patterns = [pattern for rules in (targets, numbers) for pattern, _ in rules]
    tree.check_patterns(patterns, found, f"{adapter}: targets")
    for name, module in found.items():
        setting = tree.match(targets, name, None)
        if setting is None:
            continue
        if adapter in module.site:
            raise ValueError(f"{name} already has an adapter named {adapter!r}")
        # a layer's key depends on its own name alone, never on how layers are grouped
        seeds = [zlib.crc32(layer.encode()) for layer in tree.layer_names(name)]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(seeds, jnp.uint32))
        each = jnp.asarray(tree.match_layers(numbers, name, 1.0), jnp.float32)
        axes = _AXES[type(module)] or module.axes
        delta = lambda key, weight, number, axes=axes, setting=setting: make(  # noqa: E731
            key, weight, axes=axes, setting=setting, number=number
        )
        weight = weight_of(model, module)
        try:
            if tree.is_stacked(name):
                module.site[adapter] = jax.vmap(delta)(keys, weight, each)
            else:
                module.site[adapter] = delta(keys[0], weight, each[0])
        except ValueError as error:
            raise ValueError(f"{adapter} at {name}: {error}") from error
    return model


# of the kernels of places, or of what they add to; None: the kernel says it
_AXES: dict[type, tuple[str | None, ...] | None] = {
    Linear: None,
    Embedding: ("vocabulary", "embed"),
    Head: ("embed", "vocabulary"),
    Residual: ("embed",),
    Attention: ("kv_heads",),
}


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


def single_layers(config: ModelConfig) -> tuple[str, ...]:
    """Stacks of one layer each, whose names are those of rules and files."""
    return tuple(tree.stack_key(layer, 1) for layer in range(config.layers))


def abstract(
    config: ModelConfig, method: Method, stacks: tuple[str, ...] | None = None
) -> Transformer:
    """The shapes of a model with a method attached; nothing is computed.

    Args:
      stacks: None: the fewest that the layers can form.
    """
    stacks = derive_stacks(config, method) if stacks is None else stacks
    return jax.tree.map(lambda leaf: leaf, _traced(config, method, stacks))


@functools.lru_cache(maxsize=64)  # a model of many single layers takes long to trace
def _traced(config: ModelConfig, method: Method, stacks: tuple[str, ...]) -> Transformer:
    def build(key: jax.Array) -> Transformer:
        return method.attach(Transformer(key, config, stacks), key)

    return jax.eval_shape(build, jax.random.key(0))


def smaller_sides(plain: Transformer) -> dict[str, int]:
    """The smaller side of every weight that has a site, by place; of a base in single layers."""
    found = {}
    for name, module in places(plain, *WEIGHTED):
        (place,) = tree.layer_names(name)
        tied = module.kernel is None
        found[place] = min((plain.embedding if tied else module).kernel.shape[-2:])
    return found


def derive_stacks(config: ModelConfig, method: Method) -> tuple[str, ...]:
    """The fewest stacks that the layers can form with this method, such as `("0-21", "22-23")`.

    Layers share a stack when their modules, sites, shapes and trainability are alike. That is
    read off an abstract model of single layers, so it needs no special cases.

    Raises:
      ValueError: from the method, when it does not fit the model; nothing is computed before.
    """
    single = single_layers(config)
    probe = abstract(config, method, single)
    chosen = set(trainable(probe, method))

    def kind(name: str) -> Any:
        leaves, structure = jax.tree.flatten(probe.layers[name])
        parameters = tree.flatten(probe.layers[name])
        trains = tuple(f"layers/{name}/{leaf}" in chosen for leaf in parameters)
        return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves), trains

    kinds = [kind(name) for name in single]
    alike = lambda i, j: kinds[i] == kinds[j]  # noqa: E731
    return tree.group(config.layers, alike, config.max_scan_layers)


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
    """A copy without an adapter: the base, or what else is attached to it.

    Raises:
      ValueError: nothing of that name is attached.
    """
    model = jax.tree.map(lambda leaf: leaf, model)
    if not list(_taken(model, adapter)):
        names = sorted({name for _, module in places(model, *PLACES) for name in module.site})
        raise ValueError(f"no adapter named {adapter!r} is attached; there are: {names}")
    model.methods.pop(adapter, None)
    return model


def check_untied(name: str, shares: bool) -> None:
    """Refuses to merge into a table that embedding and head share.

    Raises:
      ValueError: it is shared.
    """
    if shares:
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
      For each place that had it, what unmerging needs beside the adapter: arrays by name.

    Raises:
      ValueError: a delta cannot be merged, or another acts before it on the same weight.
    """
    kept = {}
    for name, module in places(part, *PLACES):
        first = next(iter(module.site), adapter)
        if adapter in module.site and first != adapter:
            raise ValueError(f"{name}: {adapter!r} acts on what {first!r} gives; merge that first")
    for name, module, delta in _taken(part, adapter):
        if not hasattr(delta, "merge_into"):
            raise ValueError(f"{name}: {type(delta).__name__} cannot be merged into a weight")

        def run(delta, weight):
            residual = (
                delta.unmerge_residual(weight, shared) if hasattr(delta, "unmerge_residual") else {}
            )
            return delta.merge_into(weight, shared), residual

        made, kept[name] = _over_layers(name, run)(delta, weight(module))
        _put(module, made)
    return kept


def unmerge_sites(
    part: Any,
    adapter: str,
    shared: Mapping[str, Any],
    weight: Callable[[Any], Weight | None],
    kept: Mapping[str, Any],
) -> None:
    """The inverse of `merge_sites`, of weights in which the adapter is merged; `kept` is what
    that gave."""
    for name, module, delta in _taken(part, adapter):
        run = lambda delta, weight, kept: delta.unmerge_from(weight, shared, kept)  # noqa: E731
        _put(module, _over_layers(name, run)(delta, weight(module), kept.get(name, {})))


def _taken(part: Any, adapter: str) -> Iterator[tuple[str, Any, Any]]:
    """The places that have an adapter, which is taken out of them."""
    for name, module in places(part, *PLACES):
        delta = module.site.pop(adapter, None)
        if delta is not None:
            yield name, module, delta


def _over_layers(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    return jax.vmap(run) if tree.is_stacked(name) else run


def _put(module: Any, weight: Weight) -> None:
    axes = _AXES[type(module)] or module.axes
    module.kernel = nnx.Param(weight.kernel, axes=axes)
    if weight.bias is not None:
        module.bias = nnx.Param(weight.bias, axes=axes[1:])
