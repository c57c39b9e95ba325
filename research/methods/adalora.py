"""AdaLoRA: ranks go to where they matter most (Zhang 2023, arXiv:2303.10512)."""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.config.schema import BelowOne, Count, Name, NonNegative, Positive, PositiveNumber
from research.methods.attach import attach_at
from research.methods.base import Method
from research.methods.lora import EVERY_LINEAR
from research.methods.low_rank import LowRank, low_rank_product
from research.models.layers import Linear
from research.models.sites import Context, Weight
from research.models.transformer import Transformer
from research.tree import Arrays

LEAVES = ("a", "values", "b")


@dataclasses.dataclass(frozen=True)
class AdaLoRA(Method):
    """A LoRA a @ diag(values) @ b whose triplets (a column, a value, a row) of least importance, of
    all linears together, are set to zero, until as many are left as `target_rank` a linear.

    An importance is a triplet's mean of |weight * gradient|, smoothed, times how much that varies.
    As PEFT does it, columns and rows are drawn to be orthonormal, and what is left after
    `prune_until` steps stays.
    """

    # number of steps after which ranks are final
    prune_until: Positive
    # number of steps before the first triplet is pruned
    prune_from: Count = 0
    # steps between two choices of what is pruned
    every: Positive = 10
    # rank R of each linear at the start, and on average at the end
    rank: Positive = 12
    target_rank: Positive = 8
    # patterns over names of linears
    targets: tuple[str, ...] = (EVERY_LINEAR,)
    # the product is multiplied by alpha / rank
    alpha: PositiveNumber = 32.0
    # decays of the averages of importance and of its variation
    b1: BelowOne = 0.85
    b2: BelowOne = 0.85
    # weight of the mean distance of columns and rows from orthonormal ones, added to the loss
    orthogonality: NonNegative = 0.5
    # the adapter's name
    adapter: Name = "adalora"
    kind: Literal["adalora"] = "adalora"
    drops: ClassVar[bool] = True
    has_hooks: ClassVar[bool] = True
    array_fields: ClassVar[tuple[str, ...]] = ("alpha", "orthogonality")

    def __post_init__(self) -> None:
        if self.target_rank >= self.rank:
            raise ValueError(
                f"method: target_rank {self.target_rank} is not less than rank {self.rank}: "
                "nothing would be pruned; take a lora"
            )
        if self.prune_from >= self.prune_until:
            raise ValueError(
                f"method: prune_from {self.prune_from} is not before prune_until {self.prune_until}"
            )

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        return ((rf".*/site/{re.escape(self.adapter)}/({'|'.join(LEAVES)})", True),)

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        targets = [(pattern, self.rank) for pattern in self.targets]

        def make(key, weight, *, axes, setting, number):
            return Triplets(key, weight, axes, setting, self.alpha / setting)

        return attach_at(model, key, targets, self.adapter, make, (Linear,))

    def check_steps(self, steps: int) -> None:
        if self.prune_until > steps:
            raise ValueError(
                f"method: prune_until {self.prune_until} is over the run's {steps} steps: it would "
                f"end above target_rank {self.target_rank}"
            )

    def sites(self, names: Arrays) -> list[str]:
        """The names of its sites, from those of its leaves."""
        end = f"/site/{self.adapter}/values"
        return [name.removesuffix("/values") for name in names if name.endswith(end)]

    def memory(self, trainable: Arrays) -> Arrays:
        result: Arrays = {
            f"{self.adapter}/orthogonality": jnp.asarray(self.orthogonality, jnp.float32)
        }
        for site in self.sites(trainable):
            result[f"{site}/values/active"] = jnp.ones_like(trainable[f"{site}/values"])
            for name in (f"{site}/{leaf}" for leaf in LEAVES):
                zeros = jnp.zeros_like(trainable[name])
                result |= {f"{name}/importance": zeros, f"{name}/variation": zeros}
        return result

    def penalty(self, trainable: Arrays, memory: Arrays) -> jax.Array:
        distances = []
        for site in self.sites(trainable):
            a, b = trainable[f"{site}/a"], trainable[f"{site}/b"]
            for gram in (a.mT @ a, b @ b.mT):
                rest = gram - jnp.eye(gram.shape[-1])
                distances.append(jnp.sqrt(jnp.sum(jnp.square(rest), axis=(-2, -1))).reshape(-1))
        mean = jnp.mean(jnp.concatenate(distances))
        return memory[f"{self.adapter}/orthogonality"] * mean

    def adjust(
        self, trainable: Arrays, gradients: Arrays, memory: Arrays, step: jax.Array
    ) -> tuple[Arrays, Arrays]:
        is_pruning = step < self.prune_until
        sensitivities = {
            name: jnp.abs(trainable[name] * gradients[name])
            for site in self.sites(trainable)
            for name in (f"{site}/{leaf}" for leaf in LEAVES)
        }
        new_memory = memory | self._smooth(sensitivities, memory)
        memory = jax.tree.map(lambda new, old: jnp.where(is_pruning, new, old), new_memory, memory)
        scores = {site: self._scores(site, memory) for site in self.sites(trainable)}
        # the least important ones of all sites, as many as the budget leaves out
        ranking = jnp.sort(jnp.concatenate([score.reshape(-1) for score in scores.values()]))
        count = ranking.size - self.budget(step, ranking.size)
        limit = ranking[jnp.maximum(count, 1) - 1]
        is_due = (step > self.prune_from) & (step % self.every == 0) & is_pruning
        is_due |= step == self.prune_until
        for site, score in scores.items():
            name, active = f"{site}/values", memory[f"{site}/values/active"]
            active = jnp.where(is_due, (score > limit).astype(active.dtype), active)
            pruned = trainable[name] * jnp.where(is_due | ~is_pruning, active, 1.0)
            memory, trainable = memory | {f"{name}/active": active}, trainable | {name: pruned}
        return trainable, memory

    def _smooth(self, sensitivities: Arrays, memory: Arrays) -> Arrays:
        """Averages of the sensitivities, and of how far they are from these."""
        result: Arrays = {}
        for name, sensitivity in sensitivities.items():
            importance, variation = memory[f"{name}/importance"], memory[f"{name}/variation"]
            importance = self.b1 * importance + (1 - self.b1) * sensitivity
            change = jnp.abs(sensitivity - importance)
            variation = self.b2 * variation + (1 - self.b2) * change
            result |= {f"{name}/importance": importance, f"{name}/variation": variation}
        return result

    def _scores(self, site: str, memory: Arrays) -> jax.Array:
        """[...,R]: how much each triplet of a site matters, by its value, its column, its row."""
        a, values, b = (
            memory[f"{name}/importance"] * memory[f"{name}/variation"]
            for name in (f"{site}/{leaf}" for leaf in LEAVES)
        )
        return values + a.mean(-2) + b.mean(-1)

    def budget(self, step: jax.Array, total: int) -> jax.Array:
        """[] int32, how many of all triplets are left: cubic between the first and the last."""
        target = total // self.rank * self.target_rank
        share = (step - self.prune_from) / (self.prune_until - self.prune_from)
        left = (1 - jnp.clip(share, 0, 1)) ** 3
        return ((total - target) * left + target).astype(jnp.int32)


class Triplets(LowRank):
    """y + scale * (x @ (a * values)) @ b, with a [I,R], b [R,O] small and values [R] zero."""

    def __init__(self, key, weight: Weight, axes, rank: int, scale: jax.Array):
        super().__init__(key, weight, axes, rank, scale)
        (inputs, outputs), keys = weight.kernel.shape, jax.random.split(key)
        a, b = (
            0.02 * jax.random.normal(k, shape)
            for k, shape in zip(keys, ((inputs, rank), (rank, outputs)), strict=True)
        )
        self.a = nnx.Param(a, axes=(axes[0], "rank"))
        self.b = nnx.Param(b, axes=("rank", axes[1]))
        self.values = nnx.Param(jnp.zeros(rank), axes=("rank",))

    def product(self, x: jax.Array, y: jax.Array, context: Context) -> jax.Array:
        left = self.a[...] * self.values[...]
        return low_rank_product(x, y, left, self.b[...], self.scale[...], context)

    def pairs(self) -> list[tuple[jax.Array, jax.Array, float]]:
        return [(self.a[...] * self.values[...], self.b[...], 1.0)]
