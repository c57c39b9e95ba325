"""A bank: several adapters of one kind side by side; each row of a batch says which it uses."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research import tree
from research.config.schema import Name
from research.methods.attach import PLACES
from research.methods.base import Delta, Method
from research.methods.members import Member
from research.models.sites import Context, Weight, Work, places
from research.models.transformer import Transformer

if TYPE_CHECKING:
    from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Bank(Method):
    """Adapters of one method and form; `Batch.adapter` says which one each row uses."""

    # what each of them is
    of: Member
    # their names; `Batch.adapter` counts them from 0
    names: tuple[Name, ...]
    kind: Literal["bank"] = "bank"

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"method: `names` of a bank are different ones, not {self.names}")
        if not self.of.adapter or self.of.bank_names or self.of.head_outputs:
            raise ValueError(f"method: {self.of.kind} attaches nothing that a bank could hold")
        if self.of.has_hooks or self.of.batches_to_start:
            raise ValueError(
                f"method: {self.of.kind} takes part in the step or starts from data, alone"
            )

    @property
    def adapter(self) -> str:
        return self.of.adapter

    @property
    def bank_names(self) -> tuple[str, ...]:
        return self.names

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        inner = re.escape(self.adapter)
        return tuple(
            (pattern.replace(f"site/{inner}/", f"site/{inner}/each/"), trains)
            for pattern, trains in self.of.trains
        )

    @property
    def drops(self) -> bool:
        return self.of.drops

    def bind(self, tokenizer: Tokenizer) -> Bank:
        return dataclasses.replace(self, of=self.of.bind(tokenizer))

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(self.names)))

        def attach_one(key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
            return _deltas(self.of.attach(model, key), self.adapter)

        # mapped, so that a bank compiles as fast as one adapter
        return _fill(model, jax.vmap(attach_one)(keys), self.adapter)


def stack(models: list[Transformer], method: Method) -> Transformer:
    """Models with one adapter each, on one base -> one model with all of them."""
    each = [_deltas(model, method.adapter) for model in models]
    stacks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    return _fill(models[0], stacks, method.adapter)


def _deltas(model: Transformer, adapter: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The deltas of an adapter by their places, and what they share."""
    sites = {name: module.site for name, module in places(model, *PLACES)}
    deltas = {name: site[adapter] for name, site in sites.items() if adapter in site}
    return deltas, {name: module for name, module in model.methods.items() if name == adapter}


def _fill(
    model: Transformer, each: tuple[dict[str, Any], dict[str, Any]], adapter: str
) -> Transformer:
    """A copy of the model with deltas, whose first axis is that of adapters, in their places."""
    whole, (deltas, shared) = jax.tree.map(lambda leaf: leaf, (model, each))
    for name, module in places(whole, *PLACES):
        if name in deltas:
            # behind the axis of layers, where there is one
            axis = int(tree.is_stacked(name))
            module.site[adapter] = RowDeltas(_with_axis(deltas[name], axis), adapter)
    for name, module in shared.items():
        whole.methods[name] = _with_axis(module, 0)
    return whole


def _with_axis(module: Any, axis: int) -> Any:
    """A module whose first axis is that of adapters -> the same with that axis in its place."""

    def place(parameter: nnx.Param) -> nnx.Param:
        axes = tuple(parameter.get_metadata()["axes"])
        return nnx.Param(jnp.moveaxis(parameter[...], 0, axis), axes=("adapters", *axes))

    def is_parameter(node: Any) -> bool:
        return isinstance(node, nnx.Variable)

    return jax.tree.map(place, module, is_leaf=is_parameter)


def adapter_count(model: Transformer) -> int:
    """Number of adapters among which each row of a batch chooses; 0: the model is no bank."""
    for name, module in places(model, *PLACES):
        for delta in module.site.values():
            if isinstance(delta, RowDeltas):
                return jax.tree.leaves(delta.each)[0].shape[int(tree.is_stacked(name))]
    return 0


class RowDeltas(Delta):
    """Passes each row through its own delta; a row of adapter -1 is the base's."""

    def __init__(self, each: Any, adapter: str):
        self.each = nnx.data(each)
        self.adapter = adapter

    def before(self, x: jax.Array, context: Context) -> jax.Array:
        if type(self.each).before is Delta.before:
            return x

        def before(delta: Delta, x: jax.Array, row_context: Context) -> jax.Array:
            return delta.before(x, row_context)

        return self._by_row(before, (x,), context)

    def __call__(self, x, y, weight, context: Context) -> Any:
        def after(delta: Delta, x: Any, y: Any, row_context: Context) -> Any:
            return delta(x, y, weight, row_context)

        return self._by_row(after, (x, y), context)

    def _by_row(
        self, function: Callable[..., Any], inputs: tuple[Any, ...], context: Context
    ) -> Any:
        """`function(delta, *inputs, context)` of each row; the last input, where a row has none."""
        if context.adapter is None:
            raise ValueError(
                f"a bank of adapters ({self.adapter}) is attached: `Batch.adapter` must say which "
                "of them each row uses"
            )
        ids = jnp.asarray(context.adapter)
        numbers = jnp.maximum(ids, 0)

        def pick(node: Any) -> Any:
            # not a number, for a row that asks for an adapter that is not there
            return jax.tree.map(
                lambda leaf: leaf.at[numbers].get(mode="fill", fill_value=jnp.nan), node
            )

        def row(delta: Delta, shared: Any, inputs: tuple[Any, ...], own: Any) -> Any:
            inputs, (keys, columns) = jax.tree.map(lambda leaf: leaf[None], (inputs, own))
            row_context = dataclasses.replace(
                context, adapter=None, keys=keys, columns=columns, shared=shared
            )
            return jax.tree.map(lambda leaf: leaf[0], function(delta, *inputs, row_context))

        shared = {n: pick(m) for n, m in context.shared.items() if n == self.adapter}
        own = context.keys, context.columns
        outputs = jax.vmap(row)(pick(self.each), shared, inputs, own)

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            if new.shape != old.shape:  # hidden in rows of -1 (`Transformer.hidden`)
                return new
            return jnp.where((ids >= 0).reshape(-1, *[1] * (old.ndim - 1)), new, old)

        return jax.tree.map(choose, outputs, inputs[-1])

    def work(self, weight: Weight | None, shared: Mapping[str, Any]) -> Work:
        """Each row does what one adapter does, and what that does in each pass."""
        mine = {n: tree.one_of(module) for n, module in shared.items() if n == self.adapter}
        alone = tree.one_of(self.each).work(weight, mine).under("each")
        rows = [c._replace(each="row") if c.each == "pass" else c for c in alone.chains]
        return alone._replace(chains=tuple(rows))
