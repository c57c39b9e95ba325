"""Teaches SmolLM2-135M-Instruct a house's style from rewards alone (GRPO): no answer is given.

    graft convert import --from smollm2 --out runs/smollm2
    graft train --config configs/finetune/smollm2_grpo.py --workdir runs/smollm2_grpo
    graft evaluate --task house_style --run runs/smollm2_grpo --against runs/smollm2

A round is a phase: the model answers 8 leads of articles 8 times each, a program says which share
of the house's rules each answer keeps, and four steps follow. RUN/rollouts has what was written and
what it was worth; a run that is stopped goes on in its round.

Expected: not measured yet.
Hardware: two CPU cores, Python 3.11, jax 0.10.2.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.finetune import smollm2_lora
from configs.tasks import house_style

ROUNDS = 16


def share(answer: str, record: Mapping[str, Any]) -> dict[str, float]:
    """The share of the house's rules that an answer keeps."""
    rules = house_style.check_rules(answer, record)
    rules.pop("all")
    return {"kept": sum(rules.values()) / len(rules)}


def get_config() -> ConfigDict:
    config = smollm2_lora.get_config()
    scorer = dict(kind="python", path=f"{Path(__file__)}:share", fields=["title"], name="rules")
    task = dict(
        source=house_style.source(),
        split="train",
        scorers=[scorer],
        samples=8,
        max_tokens=64,
        sampling=dict(temperature=1.0),
    )
    rollouts = dict(task=task, reward="rules/kept", prompts=8)
    config.phases = [dict(name=f"round{n + 1}", rollouts=rollouts) for n in range(ROUNDS)]
    config.steps = 4
    config.loss = dict(kind="grpo")
    config.data = dict(
        sources=[house_style.source()],  # each phase reads its rollouts instead
        objective=dict(kind="rollouts", of=dict(kind="chat")),
        sequence_length=512,
        batch_size=8,
    )
    config.schedule = dict(learning_rate=2e-4, kind="constant")
    config.checks = dict()
    config.accumulation_steps = 4  # less memory
    config.log_every = 1
    return config
