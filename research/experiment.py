"""One experiment: everything that decides a run, as one checked, frozen dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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
from research.config.suggestions import suggestion
from research.data.config import DataConfig
from research.data.run_checks import CheckConfig
from research.losses import LOSSES, CrossEntropy, LossConfig
from research.methods import METHODS, Full, Method
from research.models.config import ComputeConfig, ModelConfig
from research.objectives import Objective
from research.optim.adamw import AdamW
from research.optim.optimizers import OptimizerConfig
from research.optim.schedules import ScheduleConfig
from research.sharding import MeshConfig

# a union of the registered methods, by `kind`
MethodConfig: Any = one_of(METHODS.values())


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved and which steps are kept."""

    # steps between saves, and one at the end; 0: at the end only
    every: Count = 0
    # number of newest steps to keep
    keep_last: Positive = 2
    # save each step that is measured (`evaluate_every`), and keep the best of them too
    keep_best: bool = False
    # the metric that says which is the best: of the held-out data, or TASK/METRIC of `evaluation`
    best_metric: str = "heldout_loss"

    def __post_init__(self):
        if self.best_metric != "heldout_loss" and not self.keep_best:
            raise ValueError(
                f"best_metric {self.best_metric!r} chooses which step is kept: set keep_best too"
            )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A training run. Phases differ in data, method and start; nothing here names a phase."""

    # sources of the data, objective, length and size of batches
    data: DataConfig
    # number of steps
    steps: Positive
    # the model's shape; None takes the shape of `init_from`
    model: ModelConfig | None = None
    # changes of how it is computed, such as `compute.compute_dtype` for an imported base
    compute: ComputeConfig = ComputeConfig()
    # a tokenizer file, or a run with a tokenizer; None: that of `init_from`
    tokenizer: str | None = None
    # a run's folder (or one of its checkpoints) with the first weights; None: random. Of a tuned
    # run the adapters go on, on the same base, where `method` attaches them in the same way
    init_from: str | None = None
    # whether the state of that checkpoint's optimizer goes on too, for what trains there and here
    keep_optimizer: bool = False
    # what a method reads before the first step (ewc: other data than the run's; a lora with the
    # start eva); None: the run's own
    start_data: DataConfig | None = None
    # what is attached to the model and which parameters train
    method: MethodConfig = Full()
    # how gradients become updates
    optimizer: OptimizerConfig = AdamW()
    # the course of the learning rate
    schedule: ScheduleConfig = ScheduleConfig()
    # the loss
    loss: LossConfig = CrossEntropy()
    # decoupled weight decay
    weight_decay: NonNegative = 0.0
    # ordered (pattern over parameters, factor): the first match multiplies the decay
    weight_decay_rules: tuple[tuple[str, NonNegative], ...] = ()
    # ordered (pattern over parameters, factor): the first match multiplies the learning rate
    learning_rate_rules: tuple[tuple[str, NonNegative], ...] = ()
    # largest global norm of the gradient; None never clips
    max_grad_norm: PositiveNumber | None = 1.0
    # probability of dropping units of the residual branches; 0 compiles none
    dropout: BelowOne = 0.0
    # probability of dropping inputs of attached deltas (LoRA dropout)
    adapter_dropout: BelowOne = 0.0
    # NEFTune's alpha (arXiv:2310.05914): uniform noise on the embeddings of a document of L tokens,
    # up to alpha / sqrt(L * width), in training alone; 0 compiles none
    embedding_noise: NonNegative = 0.0
    # decay of a moving average of the weights that train, which is what is measured, saved as the
    # model and exported; it rises to this as (1 + step) / (10 + step); None: the weights themselves
    average_decay: BelowOne | None = None
    # number of micro-batches in a step
    accumulation_steps: Positive = 1
    # seed of the weights and of dropout; the data has its own
    seed: int = 0
    # stop after this many steps in a row without a finite loss and gradient
    max_skipped: Positive = 10
    # the arrangement of the devices
    mesh: MeshConfig = MeshConfig()
    # ordered (logical axis, mesh axes): how each axis of an array is sharded
    sharding_rules: sharding.Rules = sharding.RULES
    # patterns over arrays of the optimizer, such as .*/mu, to keep in the host's memory between
    # steps
    offload: tuple[str, ...] = ()
    # steps between measurements of the held-out loss and of `evaluation`, and one at the end; 0: at
    # the end only
    evaluate_every: Count = 0
    # the split that it is measured on; None: no measurement
    evaluate_split: str | None = None
    # most tokens of each source that it is measured on, whole documents drawn by the data's seed
    evaluate_tokens: Positive | None = None
    # names of the sources that have held-out splits, to be measured and checked; none: all of them
    heldout_sources: tuple[str, ...] = ()
    # what the model is asked at each measurement, as a config of graft evaluate has it: `tasks`,
    # `choice`, `text` (`research.evaluation.tasks.Evaluation`)
    evaluation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # the checks of the data before the first step, and their limits
    checks: CheckConfig = CheckConfig()
    # steps between lines of metrics
    log_every: Positive = 10
    # when the run is saved and which steps are kept
    checkpoint: CheckpointConfig = CheckpointConfig()

    def __post_init__(self):
        if self.init_from is None and (self.model is None or self.tokenizer is None):
            raise ValueError("give `init_from`, or `model` and `tokenizer` to start at random")
        if self.init_from is None and self.keep_optimizer:
            raise ValueError("keep_optimizer: there is no `init_from` whose optimizer could go on")
        loss = self.loss
        _check_examples(self)
        if loss.needs_reference and self.init_from is None:
            raise ValueError(
                f"loss {loss.kind} needs a reference, the model that the run starts from: give "
                "`init_from`"
            )
        if loss.needs_teacher and loss.teacher is None:
            raise ValueError(
                f"loss {loss.kind} needs `loss.teacher`: the folder of a run, or of one of its "
                "checkpoints"
            )
        method = self.method
        if self.start_data is not None and not method.batches_to_start:
            raise ValueError(
                f"start_data: method {method.kind} reads no data before its first step"
            )
        if self.start_data is None and method.needs_start_data:
            raise ValueError(
                f"method {method.kind} needs `start_data`: other data, of which it keeps what the "
                "model knows"
            )
        best_metric = self.checkpoint.best_metric
        is_heldout = best_metric.startswith("heldout_") and self.evaluate_split is None
        if self.checkpoint.keep_best and is_heldout:
            raise ValueError(
                f"checkpoint.keep_best by {best_metric} needs a held-out loss: give "
                "`evaluate_split`, or another best_metric"
            )
        names = [source.name for source in self.data.sources]
        for name in self.heldout_sources:
            if name not in names:
                raise ValueError(
                    f"heldout_sources: there is no source {name!r}{suggestion(name, names)}"
                )
        if self.data.batch_size % self.accumulation_steps:
            raise ValueError(
                f"data.batch_size {self.data.batch_size} does not divide by accumulation_steps "
                f"{self.accumulation_steps}"
            )


def _check_examples(experiment: Experiment) -> None:
    """Raises ValueError unless loss and head are of what the objectives give."""
    loss = experiment.loss
    for objective in experiment.data.all_objectives:
        if objective.example_kind in loss.example_kinds:
            continue
        kinds = [k for k, v in LOSSES.items() if objective.example_kind in v.example_kinds]
        raise ValueError(
            f"loss {loss.kind} is of {' or '.join(loss.example_kinds)}, and data.objective "
            f"{objective.kind} gives {objective.example_kind}: set loss.kind to "
            f"{' or '.join(kinds)}, or change the objective"
        )
    weighted = [source.name for source in experiment.data.sources if source.loss_weight != 1]
    if weighted and not {"texts", "numbers"} & set(loss.example_kinds):
        raise ValueError(
            f"source {weighted[0]!r} has a loss_weight, and loss {loss.kind} is of "
            f"{' or '.join(loss.example_kinds)}, not of tokens: give it a `weight` of the "
            "mixture instead"
        )
    for place, data in (("data", experiment.data), ("start_data", experiment.start_data)):
        for objective in data.all_objectives if data else ():
            _check_head(experiment.method, objective, f"{place}.objective")


def _check_head(method: Method, objective: Objective, where: str) -> None:
    """Raises ValueError unless the model's head says what the objective asks of it."""
    outputs, columns = objective.head_outputs, method.head_outputs
    if outputs == columns:
        return
    if not outputs:
        raise ValueError(
            f"method: a classifier says no tokens, and {where} {objective.kind} asks for them: set "
            'its kind to "classification" or "regression", or leave the classifier out'
        )
    if columns:
        raise ValueError(
            f"method: the classifier has {columns} outputs, and {where} {objective.kind} asks for "
            f"{outputs}: set `outputs` to {outputs}"
        )
    raise ValueError(
        f"{where} {objective.kind} asks for {outputs} outputs of a head, which method "
        f'{method.kind} does not attach: give method=dict(kind="several", of=[..., '
        f'dict(kind="classifier", outputs={outputs})]), or that one alone for a frozen base'
    )
