"""One experiment: everything that decides a run, as one checked, frozen dataclass."""

from __future__ import annotations

import dataclasses
from typing import Any

from research import sharding
from research.config.schema import (
    BelowOne,
    Count,
    NonNegative,
    Positive,
    PositiveNumber,
    one_of,
)
from research.data.config import DataConfig
from research.data.run_checks import CheckConfig
from research.losses.sequence_chunks import LossConfig
from research.methods import METHODS, Full
from research.models.config import ComputeConfig, ModelConfig
from research.optim.optimizers import OptimizerConfig
from research.optim.schedules import ScheduleConfig
from research.sharding import MeshConfig

# one of the registered methods, told apart by its `kind`
MethodConfig: Any = one_of(METHODS.values())


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved and what is kept."""

    # save every so many steps, and at the end; 0 saves at the end only
    every: Count = 0
    # how many of the newest steps to keep
    keep_last: Positive = 2
    # keep also the step with the lowest held-out loss
    keep_best: bool = False


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A training run. Phases differ in data, method and start; nothing here names a phase."""

    # where batches come from, and their objective, length and size
    data: DataConfig
    # how many steps to take
    steps: Positive
    # the model's shape; None takes the shape of `init_from`
    model: ModelConfig | None = None
    # how it is computed, where not as the shape says: `compute.compute_dtype` for an imported base
    compute: ComputeConfig = ComputeConfig()
    # a tokenizer file, or a run whose tokenizer to take; None: that of `init_from`
    tokenizer: str | None = None
    # a run's folder (or one of its checkpoints) whose weights to start from; None: random
    init_from: str | None = None
    # what is attached to the model and what of it trains
    method: MethodConfig = Full()
    # how gradients become steps
    optimizer: OptimizerConfig = OptimizerConfig()
    # the course of the learning rate
    schedule: ScheduleConfig = ScheduleConfig()
    # what is minimised
    loss: LossConfig = LossConfig()
    # decoupled weight decay
    weight_decay: NonNegative = 0.0
    # ordered (pattern over parameters, factor): first match multiplies the decay
    weight_decay_rules: tuple[tuple[str, NonNegative], ...] = ()
    # ordered (pattern over parameters, factor): first match multiplies the rate
    learning_rate_rules: tuple[tuple[str, NonNegative], ...] = ()
    # largest global norm of the gradient; None never clips
    max_grad_norm: PositiveNumber | None = 1.0
    # probability of dropping units of the residual branches; 0 compiles none
    dropout: BelowOne = 0.0
    # probability of dropping inputs of attached deltas (LoRA dropout)
    adapter_dropout: BelowOne = 0.0
    # micro-batches that one step adds up
    accumulation_steps: Positive = 1
    # seed of the weights and of dropout; the data has its own
    seed: int = 0
    # stop after this many steps in a row without a finite loss and gradient
    max_skipped: Positive = 10
    # how devices are arranged
    mesh: MeshConfig = MeshConfig()
    # ordered (logical axis, mesh axes): where each axis of an array lies
    sharding_rules: sharding.Rules = sharding.RULES
    # patterns over arrays of the optimizer, such as .*/mu, that lie in the host's memory between
    # steps
    offload: tuple[str, ...] = ()
    # measure the held-out loss every so many steps, and at the end; 0: at the end only
    evaluate_every: Count = 0
    # the split to measure it on; None measures nothing
    evaluate_split: str | None = None
    # most tokens of each source to measure it on, whole documents drawn by the data's seed
    evaluate_tokens: Positive | None = None
    # what of the data is looked at before the first step, and what of it is tolerated
    checks: CheckConfig = CheckConfig()
    # write metrics every so many steps
    log_every: Positive = 10
    checkpoint: CheckpointConfig = CheckpointConfig()

    def __post_init__(self):
        if self.init_from is None and (self.model is None or self.tokenizer is None):
            raise ValueError("give `init_from`, or `model` and `tokenizer` to start at random")
        if self.checkpoint.keep_best and self.evaluate_split is None:
            raise ValueError("checkpoint.keep_best needs a held-out loss: give `evaluate_split`")
        if self.data.batch_size % self.accumulation_steps:
            raise ValueError(
                f"data.batch_size {self.data.batch_size} does not divide by accumulation_steps "
                f"{self.accumulation_steps}"
            )
