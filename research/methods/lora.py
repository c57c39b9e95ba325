"""LoRA: a trained product of two thin matrices beside each frozen one (arXiv:2106.09685)."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import jax

from research import tree
from research.batch import Batch
from research.config.schema import Name, Positive, PositiveNumber
from research.methods.attach import WEIGHTED, attach_at
from research.methods.base import Gradients, Method
from research.methods.starts import STARTS, Start
from research.models.sites import places
from research.models.transformer import Transformer
from research.tree import Arrays

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
    # eva: what the linears read, in the first `start_batches` batches (arXiv:2410.07170)
    start: Start = "zero"
    # batches that a start from data reads
    start_batches: Positive = 8
    # the adapter's name
    adapter: Name = "lora"
    kind: Literal["lora"] = "lora"
    drops: ClassVar[bool] = True
    array_fields: ClassVar[tuple[str, ...]] = ("alpha",)

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        return ((rf"(.*/)?site/{re.escape(self.adapter)}/[ab]", True),)

    @property
    def batches_to_start(self) -> int:
        return self.start_batches if STARTS[self.start].reads_data else 0

    def start_from_data(
        self, model: Transformer, memory: Arrays, batches: Sequence[Batch], gradients: Gradients
    ) -> tuple[Transformer, Arrays]:
        delta = STARTS[self.start]
        return delta.start_from_data(model, self.adapter, batches, gradients), memory

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        self.check_rules(model, *WEIGHTED)
        delta = STARTS[self.start]

        def make(key, weight, *, axes, setting, number):
            return delta(key, weight, axes, setting, self.scale(setting, number))

        return attach_at(model, key, self.settings, self.adapter, make, numbers=self.numbers)

    def check_rules(self, model: Transformer, *kinds: type) -> None:
        """Refuses a rule for ranks or alphas that is for no target.

        Raises:
          ValueError: with the nearest places.
        """
        place_names = [name for name, _ in places(model, *kinds)]
        tree.check_patterns(self.targets, place_names, f"{self.adapter}: targets")
        rules = [(pattern, True) for pattern in self.targets]
        layers = [layer for name in place_names for layer in tree.layer_names(name)]
        targets = [name for name in layers if tree.first_match(rules, name, False)]
        tree.check_patterns([p for p, _ in self.ranks], targets, f"{self.adapter}: ranks")
        tree.check_patterns([p for p, _ in self.alphas], targets, f"{self.adapter}: alphas")

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
        products = [STARTS[lora.start].products for lora in every]
        rank = sum(map(operator.mul, products, (lora.rank for lora in every)))
        ranks = tuple(
            (pattern, sum(map(operator.mul, products, (lora.ranks[i][1] for lora in every))))
            for i, (pattern, _) in enumerate(self.ranks)
        )
        total = LoRA(self.targets, rank, float(rank), ranks, adapter=self.adapter)
        full = tuple(
            (re.escape(place), side)
            for place, side in sides.items()
            if side < (tree.first_match(total.settings, place, None) or 0)
        )
        return dataclasses.replace(total, ranks=(*full, *ranks))

    def scale(self, rank: int, alpha: jax.Array) -> jax.Array:
        """[] what the product is multiplied by."""
        return alpha / (rank**0.5 if self.rank_stabilized else rank)
