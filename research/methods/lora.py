"""LoRA: a trained product of two thin matrices beside each frozen one (arXiv:2106.09685)."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research import tree
from research.config.schema import Name, Positive, PositiveNumber
from research.methods.attach import WEIGHTED, attach_at, places
from research.methods.base import Method
from research.models.products import matmul, matmul_transposed, outer
from research.models.sites import Context, Weight, Work, chain
from research.models.transformer import Transformer

EVERY_LINEAR = r"layers/\d+/(attention|mlp)/\w+"


@dataclasses.dataclass(frozen=True)
class LoRA(Method):
    """Low-rank adaptation; everything of the base stays frozen.

    LoRA+ (arXiv:2402.12354) is a rule of the experiment: `learning_rate_rules = [(".*/lora/b",
    16.0)]`.
    """

    # patterns over names of linears, such as layers/7/attention/query, `embedding` and `head`
    targets: tuple[str, ...] = (EVERY_LINEAR,)
    # rank R of the product
    rank: Positive = 16
    # the product is multiplied by alpha / rank
    alpha: PositiveNumber = 32.0
    # ordered (pattern, rank) and (pattern, alpha) that go before `rank` and `alpha`
    ranks: tuple[tuple[str, Positive], ...] = ()
    alphas: tuple[tuple[str, PositiveNumber], ...] = ()
    # multiply by alpha / sqrt(rank) instead (rsLoRA, arXiv:2312.03732)
    rank_stabilized: bool = False
    # pissa: the weight's largest singular vectors, and less them (arXiv:2404.02948)
    start: Literal["zero", "pissa"] = "zero"
    # the adapter's name
    adapter: Name = "lora"
    kind: Literal["lora"] = "lora"
    drops: ClassVar[bool] = True

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        return ((rf"(.*/)?site/{re.escape(self.adapter)}/[ab]", True),)

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        self.check_rules(model, *WEIGHTED)
        made = {"zero": LowRank, "pissa": Principal}[self.start]

        def make(key, weight, *, axes, setting, number):
            return made(key, weight, axes, setting, self.scale(setting, number))

        return attach_at(model, key, self.settings, self.adapter, make, numbers=self.numbers)

    def check_rules(self, model: Transformer, *kinds: type) -> None:
        """Refuses a rule for ranks or alphas that is for no target.

        Raises:
          ValueError: with the nearest places.
        """
        found = [name for name, _ in places(model, *kinds)]
        tree.check_patterns(self.targets, found, f"{self.adapter}: targets")
        rules = [(pattern, True) for pattern in self.targets]
        singles = [layer for name in found for layer in tree.layer_names(name)]
        targets = [name for name in singles if tree.first_match(rules, name, False)]
        for what, given in (("ranks", self.ranks), ("alphas", self.alphas)):
            tree.check_patterns([p for p, _ in given], targets, f"{self.adapter}: {what}")

    @property
    def settings(self) -> tuple[tuple[str, int | None], ...]:
        """(pattern, rank) of each target; a rank by pattern counts among targets only."""
        anywhere = "|".join(f"(?:{pattern})" for pattern in self.targets)
        inside = [(rf"(?=(?:{anywhere})$)(?:{pattern})", rank) for pattern, rank in self.ranks]
        return (*inside, *((pattern, self.rank) for pattern in self.targets))

    @property
    def numbers(self) -> tuple[tuple[str, float], ...]:
        return (*self.alphas, (".*", self.alpha))

    def weighted_sum(self, others: Sequence[LoRA], sides: Mapping[str, int]) -> LoRA:
        """The LoRA that a weighted sum of this and others is: their ranks side by side, or that of
        the weight's smaller side where they are more.

        Args:
          sides: the smaller side of each weight that they act on, by place.

        Raises:
          ValueError: they act on different places.
        """
        every = (self, *others)
        places = {(lora.targets, tuple(pattern for pattern, _ in lora.ranks)) for lora in every}
        if len(places) > 1:
            raise ValueError(f"the adapters act on different places: {sorted(places)}")
        # a PiSSA takes its start off, which is a product more
        times = [2 if lora.start == "pissa" else 1 for lora in every]
        add = lambda ranks: sum(map(operator.mul, times, ranks))  # noqa: E731
        rank = add([lora.rank for lora in every])
        ranks = tuple(
            (pattern, add([lora.ranks[i][1] for lora in every]))
            for i, (pattern, _) in enumerate(self.ranks)
        )
        asked = LoRA(self.targets, rank, float(rank), ranks, adapter=self.adapter)
        full = tuple(
            (re.escape(place), side)
            for place, side in sides.items()
            if side < (tree.first_match(asked.settings, place, None) or 0)
        )
        return dataclasses.replace(asked, ranks=(*full, *ranks))

    def scale(self, rank: int, alpha: jax.Array) -> jax.Array:
        """[] what the product is multiplied by."""
        return alpha / (rank**0.5 if self.rank_stabilized else rank)


class LowRank(nnx.Module):
    """y + scale * (x @ a) @ b, with a [I,R] random and b [R,O] zero at the start.

    In the embedding x are tokens, and a's rows are looked up: there a is zero and b random.
    """

    def __init__(
        self,
        key: jax.Array,
        weight: Weight,
        axes: tuple[str | None, ...],
        rank: int,
        scale: jax.Array,
    ):
        inputs, outputs = weight.kernel.shape
        if not 0 < rank <= min(inputs, outputs):
            raise ValueError(f"rank {rank} does not fit a weight of {inputs} x {outputs}")
        if axes[0] == "vocabulary":  # as PEFT starts
            a, b = jnp.zeros((inputs, rank)), jax.random.normal(key, (rank, outputs))
        else:
            bound = inputs**-0.5  # as PEFT starts: kaiming_uniform(a=sqrt(5))
            a = jax.random.uniform(key, (inputs, rank), minval=-bound, maxval=bound)
            b = jnp.zeros((rank, outputs))
        self.a = nnx.Param(a, axes=(axes[0], "rank"))
        self.b = nnx.Param(b, axes=("rank", axes[1]))
        # an array, so that runs with other scales share the program; it never trains
        self.scale = nnx.Param(jnp.asarray(scale, jnp.float32), axes=())

    def product(self, x: jax.Array, y: jax.Array, context: Context) -> jax.Array:
        """scale * (x @ a) @ b: x [B,S,I], or tokens [B,S], -> [B,S,O] in y's type."""
        return low_rank(x, y, self.a[...], self.b[...], self.scale[...], context)

    def __call__(self, x, y, weight: Weight, context: Context) -> jax.Array:
        return y + self.product(x, y, context)

    def change(self) -> jax.Array:
        """What it adds to the kernel [I,O]."""
        return sum(sign * self.scale[...] * a @ b for a, b, sign in self.pairs())

    def pairs(self) -> list[tuple[jax.Array, jax.Array, float]]:
        """The products a @ b that it adds, each with its sign."""
        return [(self.a[...], self.b[...], 1.0)]

    @staticmethod
    def weighted_sum(parts: Sequence[tuple[float, LowRank]]) -> dict[str, jax.Array]:
        """The leaves of the weighted sum: a [I,R+R'], b [R+R',O], scale []; with more ranks than
        the smaller side has numbers, the sum itself and an identity."""
        a, b = [], []
        for weight, delta in parts:
            for left, right, sign in delta.pairs():
                a.append(left)
                b.append(weight * sign * delta.scale[...] * right)
        left, right = jnp.concatenate(a, 1), jnp.concatenate(b)
        (inputs, rank), outputs = left.shape, right.shape[1]
        if rank > min(inputs, outputs):
            change = left @ right
            small = jnp.eye(min(inputs, outputs))
            left, right = (small, change) if inputs <= outputs else (change, small)
        return {"a": left, "b": right, "scale": jnp.float32(1)}

    def merge_into(self, weight: Weight, shared: Mapping[str, Any]) -> Weight:
        """The weight that does the same alone."""
        return weight._replace(kernel=weight.kernel.astype(jnp.float32) + self.change())

    def unmerge_from(self, weight: Weight, shared: Mapping[str, Any], kept: Any) -> Weight:
        """The inverse of `merged`."""
        return weight._replace(kernel=weight.kernel - self.change())


def low_rank(x, y, a, b, scale, context: Context) -> jax.Array:
    """scale * (x @ a) @ b, or scale * a[x] @ b for tokens, in y's type."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        low = context.drop(a[x].astype(y.dtype), context.adapter_dropout)
        prompts = y.shape[1] - x.shape[1]  # of another method, in front
        low = jnp.pad(low, ((0, 0), (prompts, 0), (0, 0)))
    else:
        low = matmul(context.drop(x, context.adapter_dropout), a)
    return matmul(low * scale.astype(low.dtype), b).astype(y.dtype)


@jax.custom_batching.sequential_vmap
def _svd(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Layer after layer: several at once wait for each other for ever on a CPU of two cores, where
    what is read is quantised (jax 0.10.2)."""
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    return left, values, right


class Principal(LowRank):
    """PiSSA: a and b start as the weight's R largest singular vectors, each with the root of its
    value. Their start stays beside them and is taken off, so that the weight is the base's own."""

    def __init__(self, key, weight: Weight, axes, rank: int, scale: jax.Array):
        super().__init__(key, weight, axes, rank, scale)
        left, values, right = _svd(weight.kernel.astype(jnp.float32))
        root = jnp.sqrt(values[:rank] / self.scale[...])
        a, b = left[:, :rank] * root, root[:, None] * right[:rank]
        self.a, self.first_a = (nnx.Param(a, axes=(axes[0], "rank")) for _ in range(2))
        self.b, self.first_b = (nnx.Param(b, axes=("rank", axes[1])) for _ in range(2))

    def product(self, x: jax.Array, y: jax.Array, context: Context) -> jax.Array:
        first_a, first_b, scale = self.first_a[...], self.first_b[...], self.scale[...]
        if jnp.issubdtype(x.dtype, jnp.integer):
            return super().product(x, y, context) - low_rank(x, y, first_a, first_b, scale, context)
        rows = context.drop(x, context.adapter_dropout).reshape(-1, x.shape[-1])
        change = _difference(rows, self.a[...], scale * self.b[...], first_a, scale * first_b)
        return change.reshape(y.shape).astype(y.dtype)

    def work(self, weight: Weight, shared: Mapping[str, Any]) -> Work:
        return Work((chain(self, "a", "b"), chain(self, "first_a", "first_b")))

    def pairs(self) -> list[tuple[jax.Array, jax.Array, float]]:
        return [*super().pairs(), (self.first_a[...], self.first_b[...], -1.0)]


@jax.custom_vjp
def _difference(x, a, b, first_a, first_b) -> jax.Array:
    """x @ a @ b - x @ first_a @ first_b: x [T,I] -> [T,O], as one chain of products of 2R ranks.

    One chain passes over x and the output once, and sums the difference in float32. Its gradients
    are written out, each apart, so that those of the frozen half are not computed.
    """
    return _difference_forward(x, a, b, first_a, first_b)[0]


def _difference_forward(x, a, b, first_a, first_b):
    left, right = jnp.concatenate([a, first_a], 1), jnp.concatenate([b, -first_b])
    low = matmul(x, left)
    return matmul(low, right), (x, low, left, right)


def _difference_backward(kept, dy):
    x, low, left, right = kept
    dlow = matmul_transposed(dy, right, x.dtype)
    da, dfirst_a = (outer(x, half) for half in jnp.split(dlow, 2, axis=1))
    db, dfirst_b = (outer(half, dy) for half in jnp.split(low, 2, axis=1))
    return matmul_transposed(dlow, left, x.dtype), da, db, dfirst_a, -dfirst_b


_difference.defvjp(_difference_forward, _difference_backward)
