"""A contender: Graft's train step with a loss of two answers to a prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from research import sharding
from research.batch import BAD, GOOD, Batch
from research.benchmarks import graft_step
from research.benchmarks.losses import answers
from research.experiment import Experiment
from research.losses import DPO, GRPO, IPO
from research.losses.base import Loss
from research.objectives import Preference, Rollouts, Supervised
from research.runtime.memory import peak_memory_bytes
from research.training.heldout_loss import make_losses
from research.training.program import Program

LOSSES: dict[str, Loss] = {"dpo": DPO(), "ipo": IPO(), "grpo": GRPO()}
OBJECTIVES = {"pairs": Preference(Supervised()), "rollouts": Rollouts(Supervised())}

# what the harness asks for
peak_memory = peak_memory_bytes


def prepare(settings: Mapping[str, Any]):
    """A contender, see `research.benchmarks.harness` and `research.benchmarks.losses`."""

    def make_batch(plan: Program, model: Any) -> Batch:
        rows = batch(settings)
        losses = make_losses(model, sharding.batch_sharding(plan.mesh, sharding.RULES))
        reference = -np.asarray(losses(rows).nll, np.float32)
        return dataclasses.replace(rows, reference=np.where(rows.weights > 0, reference, 0.0))

    _, facts, run = graft_step.build_step(experiment(settings), make_batch, settings.get("weights"))
    return {"losses": facts.losses, "jax": jax.__version__}, run


def experiment(settings: Mapping[str, Any]) -> Experiment:
    """That of the plain step, with the loss."""
    plain = graft_step.experiment(settings)
    loss = LOSSES[settings["loss"]]
    data = dataclasses.replace(plain.data, objective=OBJECTIVES[loss.example_kinds[0]])
    # the reference is that of the fresh model
    return dataclasses.replace(plain, data=data, loss=loss, init_from="none")


def batch(settings: Mapping[str, Any]) -> Batch:
    """A row for each prompt: both answers, each behind a copy of it."""
    prompts, both, advantages = answers(settings)
    count, size = prompts.shape
    rows = (count, 4 * size)
    fields: dict[str, Any] = {
        name: np.zeros(rows, np.int32) for name in ("tokens", "targets", "segments")
    }
    fields |= {name: np.zeros(rows, np.int32) for name in ("positions", "roles")}
    weights, values = np.zeros((2, *rows), np.float32)
    for number in range(2):
        text = np.concatenate([prompts, both[:, number]], axis=1)
        here = slice(number * 2 * size, number * 2 * size + 2 * size - 1)
        answer = slice(here.stop - size, here.stop)
        fields["tokens"][:, here], fields["targets"][:, here] = text[:, :-1], text[:, 1:]
        fields["segments"][:, here] = number + 1
        fields["positions"][:, here] = np.arange(2 * size - 1)
        fields["roles"][:, answer] = (GOOD, BAD)[number]
        weights[:, answer] = 1
        values[:, answer] = advantages[:, number, None]
    roles = fields.pop("roles")
    is_pair = "pairs" in LOSSES[settings["loss"]].example_kinds
    own: dict[str, Any] = {"roles": roles} if is_pair else {"values": values}
    return Batch(**fields, weights=weights, **own)
