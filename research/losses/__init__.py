"""Losses, one file each, and cross-entropy over large vocabularies in chunks."""

from typing import Any

from research.config.schema import by_kind, one_of
from research.losses.base import Loss
from research.losses.cross_entropy import CrossEntropy
from research.losses.distillation import Distillation
from research.losses.dpo import DPO
from research.losses.grpo import GRPO
from research.losses.ipo import IPO
from research.losses.kto import KTO
from research.losses.orpo import ORPO
from research.losses.reinforce import Reinforce
from research.losses.simpo import SimPO
from research.losses.squared_error import SquaredError

LOSSES: dict[str, type[Loss]] = by_kind(
    CrossEntropy, SquaredError, DPO, IPO, KTO, ORPO, SimPO, GRPO, Reinforce, Distillation
)

# One of them, told apart by its `kind`.
LossConfig: Any = one_of(LOSSES.values())
