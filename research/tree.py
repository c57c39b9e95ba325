"""Names for the leaves of a model, ordered rules over names, partition and merge.

In memory, consecutive layers that are alike form one stack: its leaves carry a leading layer
axis and a name with a range, `layers/0-23/attention/query/kernel [24,D,H*N]`. Rules and files
speak of single layers, `layers/7/attention/query/kernel [D,H*N]`. This module is the only place
that translates between the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from research.config.suggestions import nearest_names

Value = TypeVar("Value")
Rules = Sequence[tuple[str, Value]]
Arrays = dict[str, Any]

_STACKED = re.compile(r"^(?P<before>.*?)layers/(?P<first>\d+)-(?P<last>\d+)(?P<after>/.*)?$")


def join(path: tuple[Any, ...]) -> str:
    """The name of a node of a model: the keys of its path, joined by `/`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def name_of(path: tuple[Any, ...]) -> str:
    """The name of a leaf: its path without the `value` that every `nnx.Param` ends with."""
    is_value = path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value"
    return join(path[:-1] if is_value else path)


def flatten(tree: Any) -> Arrays:
    """`{name: leaf}` in the tree's own order."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def unflatten(like: Any, arrays: Mapping[str, Any]) -> Any:
    """A tree of `like`'s structure with the leaves of `arrays`; names must be the same."""
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [name_of(path) for path, _ in paths]
    check_names(names, arrays, "arrays for this model")
    return jax.tree.unflatten(structure, [arrays[name] for name in names])


def parameter_axes(tree: Any) -> dict[str, tuple[str | None, ...]]:
    """The logical axes in each parameter's metadata; a stacked one has `layers` in front.

    Raises:
      ValueError: a parameter without logical axes, or not one for each of its axes.
    """

    def is_parameter(node: Any) -> bool:
        return isinstance(node, nnx.Variable)

    result = {}
    for path, parameter in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_parameter)[0]:
        name, axes = join(path), parameter.get_metadata().get("axes")
        layers = ("layers",) if is_stacked(name) else ()
        if axes is None or len(layers) + len(axes) != parameter.ndim:
            shape = parameter.shape[len(layers) :]
            raise ValueError(
                f"{name}: a parameter of shape {shape} notes one logical axis (or None) for each "
                f"of its {len(shape)}, as in nnx.Param(array, axes=...), not {axes}"
            )
        result[name] = (*layers, *axes)
    return result


# in front of a pattern over parameter names: only those that no method attached
OF_THE_BASE = "(?!(.*/)?site/|methods/)"


def is_attached(name: str) -> bool:
    """Whether a method attached a parameter, by its name."""
    return re.match(OF_THE_BASE, name) is None


def partition(tree: Any, trainable: Iterable[str]) -> tuple[Arrays, Arrays]:
    """Splits a model into `{name: leaf}` of the trainable leaves and of the frozen ones."""
    arrays, names = flatten(tree), set(trainable)
    return (
        {name: leaf for name, leaf in arrays.items() if name in names},
        {name: leaf for name, leaf in arrays.items() if name not in names},
    )


def merge(like: Any, *parts: Mapping[str, Any]) -> Any:
    """The inverse of `partition`; of `like`, only the structure is used."""
    return unflatten(like, {name: leaf for part in parts for name, leaf in part.items()})


# --- stacks ---------------------------------------------------------------------------------


def is_stacked(name: str) -> bool:
    return _STACKED.match(name) is not None


def stack_key(first: int, count: int) -> str:
    """The key of a stack of `count` layers that starts at layer `first`, such as `0-23`."""
    return f"{first}-{first + count - 1}"


def stack_range(key: str) -> range:
    """The layers of a stack, from its key."""
    first, last = key.split("-")
    return range(int(first), int(last) + 1)


def layers_of(name: str) -> range:
    """The layers of a stacked leaf, from its name."""
    match = _STACKED.match(name)
    assert match is not None, name
    return stack_range(f"{match['first']}-{match['last']}")


def stacks(layers: Mapping[str, Value]) -> list[tuple[range, Value]]:
    """The stacks of a model in the order of their layers."""
    return sorted(
        ((stack_range(key), stack) for key, stack in layers.items()),
        key=lambda item: item[0].start,
    )


def layer_names(name: str) -> list[str]:
    """The single-layer names of a leaf: its own name when it is not stacked."""
    match = _STACKED.match(name)
    if match is None:
        return [name]
    before, first, last, after = match.groups()
    return [f"{before}layers/{i}{after or ''}" for i in range(int(first), int(last) + 1)]


def unstack(arrays: Mapping[str, Any]) -> Arrays:
    """Stacked arrays -> one array a layer, named as rules and files name them."""
    result: Arrays = {}
    for name, array in arrays.items():
        if is_stacked(name):
            result |= {layer: array[i] for i, layer in enumerate(layer_names(name))}
        else:
            result[name] = array
    return result


def restack(arrays: Mapping[str, Any], names: Iterable[str]) -> Arrays:
    """One array a layer -> arrays under the given, possibly stacked, names."""
    return {
        name: jnp.stack([arrays[layer] for layer in layer_names(name)])
        if is_stacked(name)
        else arrays[name]
        for name in names
    }


def unstack_shapes(shapes: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """`unstack` for abstract arrays."""
    return jax.eval_shape(unstack, dict(shapes))


def one_of(stack: Any) -> Any:
    """One abstract element along the leaves' first axis."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stack)


def group(count: int, alike: Callable[[int, int], bool], max_layers: int) -> tuple[str, ...]:
    """Groups layers 0..count-1 into stacks of consecutive layers that are alike.

    Args:
      alike: whether layer j can share a stack with layer i.
      max_layers: most layers in one stack; 0 for no limit, 1 for an unrolled model.
    """
    keys, first = [], 0
    for layer in range(1, count + 1):
        is_full = max_layers and layer - first == max_layers
        if layer == count or is_full or not alike(first, layer):
            keys.append(stack_key(first, layer - first))
            first = layer
    return tuple(keys)


# --- rules ----------------------------------------------------------------------------------


def first_match(rules: Rules[Value], name: str, default: Value) -> Value:
    """The value of the first rule whose pattern (a full regular expression) matches."""
    return next((value for pattern, value in rules if re.fullmatch(pattern, name)), default)


def check_patterns(patterns: Iterable[str], names: Iterable[str], where: str) -> None:
    """Refuses a pattern that is no regular expression or that matches no name at all.

    Raises:
      ValueError: with the nearest names.
    """
    layers = [layer for name in names for layer in layer_names(name)]
    for pattern in patterns:
        try:
            regex = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{where}: {pattern!r} is no regular expression: {error}") from error
        if not any(regex.fullmatch(name) for name in layers):
            near = nearest(pattern, layers)
            raise ValueError(f"{where}: pattern {pattern!r} matches nothing; nearest: {near}")


def match_layers(rules: Rules[Value], name: str, default: Value) -> list[Value]:
    """The rules' value for each layer of a (possibly stacked) name."""
    return [first_match(rules, layer, default) for layer in layer_names(name)]


def match(rules: Rules[Value], name: str, default: Value) -> Value:
    """The rules' value for a name whose layers must agree.

    Raises:
      ValueError: when the layers of one stack disagree.
    """
    values = match_layers(rules, name, default)
    if any(value != values[0] for value in values):
        raise ValueError(f"the rules give the layers of {name} different values: {values}")
    return values[0]


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """The names most like `name`, as text for an error message."""
    plain = re.sub(r"\\d\+|\.\*|[()\\|+?*\[\]^$]", "", name)
    return ", ".join(nearest_names(plain, names, count, cutoff=0.0)) or "(none)"


def check_names(expected: Iterable[str], actual: Iterable[str], what: str) -> None:
    """Refuses missing and surplus names.

    Raises:
      ValueError: listing both.
    """
    expected, actual = set(expected), set(actual)
    missing, surplus = sorted(expected - actual), sorted(actual - expected)
    if missing or surplus:
        lines = [f"{what} do not fit:"]
        lines += [f"  missing {n} (nearest given: {nearest(n, actual, 1)})" for n in missing[:8]]
        lines += [f"  surplus {n} (nearest wanted: {nearest(n, expected, 1)})" for n in surplus[:8]]
        remaining = max(len(missing) - 8, 0) + max(len(surplus) - 8, 0)
        raise ValueError("\n".join(lines + ([f"  and {remaining} more"] if remaining else [])))
