"""Sites: the named places of a model where a tuning method may act.

Every site is an ordered map from a name to a `Delta`, empty in a base model: a module with
`delta(x, y, weight, context) -> y`, which gets the place's input, its output so far and its weight
(kernel and bias). The places, by the path of the module that owns them:

  `embedding`                    x tokens [B,S], y [B,S,D] -> [B,P+S,D] (P prompt tokens in front)
  `layers/N/attention/query` ..  every Linear: x [B,S,I], y [B,S,O], kernel [I,O]; its deltas may
                                 change x `before` the product too
  `layers/N/attention`           x [B,S,D], y (keys, values) [B,T,K,N] -> [B,P+T,K,N] (a prefix)
  `layers/N/attention_output`    x the sub-layer's input [B,S,D], y its output [B,S,D]
  `layers/N/mlp_output`          the same, after the MLP
  `head`                         x [B,S,D], y logits [B,S,V], kernel [D,V]; a delta that `replaces`
                                 gives its own outputs [B,S,C] instead

So a base parameter's path and value are the same before and after tuning, a model without
attachments is the base, and a new method needs no edit of the model.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from research import tree
from research.batch import Array


class Weight(NamedTuple):
    """The weight of a place; a quantised base has another kind of leaf as its kernel."""

    kernel: Any
    bias: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a forward pass carries beside activations; every field is optional.

    Attributes:
      adapter: [B] int32, which of a delta's adapters each row uses.
      keys: [B] random keys, one a row; None in evaluation, which switches dropout off.
      dropout: [] probability of dropping a unit of the base's residual branches.
      adapter_dropout: [] probability of dropping a unit of the input of a delta.
      columns: [B,C] int32, the columns of its row that a part holds, where a row is cut into parts
        (`research.losses.sequence_chunks`): so what is dropped does not depend on how it is cut.
      noise: [B,S] bound of uniform noise on a token's embedding, times the root of the width.
      counted: [B,S] bool, the tokens of a row's text that are measured (`methods.eva`).
      shared: modules that a method shares between its sites, by method name.
    """

    adapter: Array | None = None
    keys: jax.Array | None = None
    dropout: Array | None = None
    adapter_dropout: Array | None = None
    columns: Array | None = None
    noise: Array | None = None
    counted: Array | None = None
    shared: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def at(self, place: str | jax.Array) -> Context:
        """The context inside a named place or a numbered layer: its keys are its own."""
        if self.keys is None:
            return self
        number = zlib.crc32(place.encode()) if isinstance(place, str) else place
        keys = jax.vmap(jax.random.fold_in, (0, None))(self.keys, number)
        return dataclasses.replace(self, keys=keys)

    def drop(self, x: jax.Array, rate: Array | None) -> jax.Array:
        """Dropout whose mask depends on each row's key, and its columns: x [B,...] -> [B,...].

        Raises:
          ValueError: a rate without random keys.
        """
        if rate is None:
            return x
        if self.keys is None:
            raise ValueError(
                "a dropout rate needs random keys: give `Context.keys`, one a row, or no rate"
            )
        keys = self.keys
        if self.columns is not None:
            keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, self.columns)

        def mask(key: jax.Array) -> jax.Array:
            return jax.random.bernoulli(key, 1 - rate, x.shape[keys.ndim :])

        for _ in range(keys.ndim):
            mask = jax.vmap(mask)
        return jnp.where(mask(keys), x / jnp.asarray(1 - rate, x.dtype), jnp.zeros_like(x))


def empty() -> OrderedDict[str, Delta]:
    """An empty site. Data, not a static attribute, so that it can be filled later."""
    return nnx.data(OrderedDict())


def places(model: Any, *kinds: type) -> Iterator[tuple[str, Any]]:
    """A model's modules of these kinds with their names, such as `layers/0-23/mlp/up`."""
    for kind in kinds:  # one after the other: an attention holds linears

        def is_place(node: Any, kind: type = kind) -> bool:
            return isinstance(node, kind)

        for path, node in jax.tree_util.tree_flatten_with_path(model, is_leaf=is_place)[0]:
            if is_place(node):
                yield tree.join(path), node


# a name and a shape
Factor = tuple[str | None, tuple[int, ...]]


class Chain(NamedTuple):
    """Factors that rows pass one after the other, as x does in `(x @ a) @ b`.

    Attributes:
      factors: (name, shape) of each: two axes or more are a matrix product, others cost nothing.
        A name is that of the delta's own leaf, or `methods/...`; None where no gradient goes.
      rows: how many rows pass it ...
      each: ... for each token, for each row of the batch, or in each pass of the model.
    """

    factors: tuple[Factor, ...]
    rows: int = 1
    each: Literal["token", "row", "pass"] = "token"


class Work(NamedTuple):
    """What a delta adds to the work of its place.

    Attributes:
      chains: its matrix products.
      tokens: how many tokens it puts in front of every row.
      keys: how many keys and values it puts in front of every row's.
      before: whether rows pass its chains before the place's own weight (`Delta.before`).
    """

    chains: tuple[Chain, ...] = ()
    tokens: int = 0
    keys: int = 0
    before: bool = False

    def under(self, owner: str) -> Work:
        """The same with its own leaves named as the delta's owner names them."""

        def full_name(name: str | None) -> str | None:
            return name if name is None or name.startswith("methods/") else f"{owner}/{name}"

        chains = [
            chain._replace(factors=tuple((full_name(name), shape) for name, shape in chain.factors))
            for chain in self.chains
        ]
        return self._replace(chains=tuple(chains))


def chain(delta: Any, *names: str) -> Chain:
    """The chain of a delta's own leaves, which each token passes."""
    leaves = tree.flatten(delta)
    return Chain(tuple((name, leaves[name].shape) for name in names))


class Delta(nnx.Module):
    """What stands in a site. A subclass overrides what it does; the rest has defaults."""

    def before(self, x: jax.Array, context: Context) -> jax.Array:
        """A linear's input before the product with the weight, and before what acts earlier.

        So what changes the input needs no second product with the weight. Only linears have it.
        """
        return x

    def __call__(self, x: Any, y: Any, weight: Any, context: Context) -> Any:
        """The place's output.

        Args:
          x: the place's input.
          y: its output so far, of the weight and of the deltas before this one.
          weight: its `Weight`, or None where the place has none.
        """
        return y

    def work(self, weight: Any, shared: Mapping[str, Any]) -> Work:
        """The work of one layer's delta (abstract will do): by default its leaves in turn."""
        return Work((chain(self, *tree.flatten(self)),))

    @property
    def replaces(self) -> bool:
        """Of the head's: whether its output stands for the logits, which are not made then."""
        return False

    @property
    def mergeable(self) -> bool:
        """Whether it is a change of its weight."""
        return type(self).merge_into is not Delta.merge_into

    def merge_into(self, weight: Weight, shared: Mapping[str, Any]) -> Weight:
        """The weight, in float32, that does the same alone.

        Raises:
          ValueError: it is no change of a weight.
        """
        raise ValueError(f"{type(self).__name__} cannot be merged into a weight")

    def unmerge_residual(self, weight: Weight, shared: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Arrays that unmerging needs beside the delta, from the weight before it is merged."""
        return {}

    def unmerge_from(
        self, weight: Weight, shared: Mapping[str, Any], residual: Mapping[str, jax.Array]
    ) -> Weight:
        """The inverse of `merge_into`, given what `unmerge_residual` returned before it.

        Raises:
          ValueError: it is no change of a weight.
        """
        raise ValueError(f"{type(self).__name__} cannot be taken out of a weight")

    @classmethod
    def weighted_sum(cls, parts: Sequence[tuple[float, Any]]) -> dict[str, jax.Array]:
        """The leaves of the delta that a weighted sum of (weight, delta) is.

        Raises:
          ValueError: such a sum is no delta of this class.
        """
        raise ValueError(f"a weighted sum of {cls.__name__} is none itself")


def apply(
    site: Mapping[str, Delta], x: jax.Array, y: Any, weight: Weight | None, context: Context
) -> Any:
    """Passes a place's output through its deltas in the order in which they were attached."""
    for name, delta in site.items():
        y = delta(x, y, weight, context.at(name))
    return y


def apply_around(
    site: OrderedDict[str, Delta],
    x: jax.Array,
    product: Callable[[jax.Array], jax.Array],
    weight: Weight,
    context: Context,
) -> jax.Array:
    """Passes a linear's input through `before` of its deltas, last one first, and through the
    product; then its output as `apply` does. A delta gets the input as the later ones leave it:
    each of them acts on the linear as it is with all earlier ones."""
    inputs = [x]
    for name, delta in reversed(site.items()):
        inputs.append(delta.before(inputs[-1], context.at(name)))
    y = product(inputs.pop())
    for name, delta in site.items():
        y = delta(inputs.pop(), y, weight, context.at(name))
    return y
