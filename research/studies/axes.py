"""The points of a study: values of config keys, combined.

    product(axis("method.rank", 1, 4, 16), axis("schedule.learning_rate", 1e-3, 3e-3))   6 points
    zipped(axis("steps", 100, 200), axis("data.batch_size", 32, 16))                      2 points
    chain(axis("method.rank", 1, 4), axis("method.rank", 64))                             3 points
    sample(8, product(...), seed=0)                                                       8 of them
    variants("task", law={"data.sources": ...}, health={"data.sources": ...})             2 points

A key is a path of the config, or the end of one that no other path has. Every combinator is a pure
function: the same arguments give the same points in the same order.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# what a seed moves: the start of the weights and dropout, and the order of the data
SEED_KEYS = ("seed", "data.seed")


@dataclasses.dataclass(frozen=True)
class Variant:
    """Several changes of a config under one name."""

    name: str
    changes: Mapping[str, Any]

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Axes:
    """Points, each a mapping from a config key to its value; all of them have the same keys."""

    points: tuple[Mapping[str, Any], ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("an axis needs at least one value")
        for point in self.points:
            if set(point) != set(self.points[0]):
                raise ValueError(
                    f"the points of axes must have the same keys: {sorted(self.points[0])} and "
                    f"{sorted(point)}"
                )
        texts = [json.dumps(point, sort_keys=True, default=str) for point in self.points]
        twice = sorted({text for text in texts if texts.count(text) > 1})
        if twice:
            raise ValueError(f"the axes have the point {twice[0]} twice")

    @property
    def keys(self) -> tuple[str, ...]:
        """The config keys, in the order in which they were given."""
        return tuple(self.points[0])

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.points)


def axis(key: str, *values: Any) -> Axes:
    """One config key, and the values it takes."""
    return Axes(tuple({key: value} for value in values))


def variants(key: str, **values: Mapping[str, Any]) -> Axes:
    """Values that each change several config keys; tables and queries have `key` and names."""
    return Axes(tuple({key: Variant(name, changes)} for name, changes in values.items()))


def expand(point: Mapping[str, Any]) -> dict[str, Any]:
    """Config key -> value of a point, where a variant stands for its changes."""
    changes: dict[str, Any] = {}
    for key, value in point.items():
        changes |= value.changes if isinstance(value, Variant) else {key: value}
    return changes


def variant_names(point: Mapping[str, Any]) -> dict[str, Any]:
    """Key -> value of a point as tables and queries have it: a variant's name."""
    return {
        key: str(value) if isinstance(value, Variant) else value for key, value in point.items()
    }


def product(*axes: Axes) -> Axes:
    """Every combination; the last axis moves fastest.

    Raises:
      ValueError: two axes have the same key.
    """
    _check_apart(axes)
    return Axes(tuple(map(_merged, itertools.product(*axes))))


def zipped(*axes: Axes) -> Axes:
    """The first points of all axes together, then the second ones, and so on.

    Raises:
      ValueError: axes of different lengths, or with the same key.
    """
    _check_apart(axes)
    sizes = {len(each) for each in axes}
    if len(sizes) > 1:
        raise ValueError(f"axes that go together must be equally long, not {sorted(sizes)}")
    return Axes(tuple(map(_merged, zip(*axes, strict=True))))


def chain(*axes: Axes) -> Axes:
    """The points of the first axis, then those of the second, and so on.

    Raises:
      ValueError: axes of other keys, or with the same point.
    """
    return Axes(tuple(itertools.chain.from_iterable(axes)))


def sample(count: int, axes: Axes, seed: int = 0) -> Axes:
    """`count` of the points, drawn without repetition, in their order: random search.

    Raises:
      ValueError: there are fewer points.
    """
    if not 0 < count <= len(axes):
        raise ValueError(f"cannot draw {count} of {len(axes)} points")
    numbers = sorted(random.Random(seed).sample(range(len(axes)), count))
    return Axes(tuple(axes.points[number] for number in numbers))


def _merged(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for point in points for key, value in point.items()}


def _check_apart(axes: Sequence[Axes]) -> None:
    keys = [key for each in axes for key in each.keys]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"two axes set {twice[0]!r}: chain them, or take one out")
