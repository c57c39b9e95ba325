"""Tunes SmolLM2-135M-Instruct with LoRA on the training split of a task of configs/tasks.

    graft train --config configs/finetune/smollm2_task.py:house_style --workdir runs/house_style
    graft evaluate --task house_style --run runs/house_style --against runs/smollm2

Expected, of test questions, one seed: all of the house's rules are kept in 43% [32, 57] of 60, and
in none by the base; education 52.7% [44.8, 60.3] of 150, the base 48.7%, which is not told apart.
docs/results/tasks.md has all of it; finance was not measured.
Hardware: two CPU cores, Python 3.11, jax 0.10.2.

The model reads and answers in its own chat template, as the base is asked. Every 20 steps it is
asked 16 questions of the validation split, which shows what tuning changes as it goes; the step
that does best is `RUN/best`. So few questions rank only what differs much.
"""

import importlib

from ml_collections import ConfigDict

from configs.finetune import smollm2_lora

# those that have a training split, and the metric that says which checkpoint is the best
TASKS = {
    "education": "education/right",
    "finance": "finance/json/fields",
    "house_style": "house_style/rules/all",
}


def get_config(task: str = "house_style") -> ConfigDict:
    if task not in TASKS:
        raise ValueError(f"smollm2_task.py:{task}: there are {', '.join(TASKS)}")
    module = importlib.import_module(f"configs.tasks.{task}")
    config = smollm2_lora.get_config()
    config.steps = 40
    config.data = dict(
        sources=[module.source()],
        objective=dict(kind="chat"),
        sequence_length=512,  # the longest sentence of finance has 465 tokens
        batch_size=6,
    )
    config.checks = dict(splits=("validation", "test"))
    config.evaluation = module.get_config()
    config.evaluation.tasks[task].update(split="validation", max_questions=16)
    config.evaluate_every = 20
    config.checkpoint = dict(keep_best=True, best_metric=TASKS[task])
    return config
