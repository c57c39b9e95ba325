"""Tunes SmolLM2-135M-Instruct with LoRA on instructions that a program made and can check.

    graft train --config configs/finetune/smollm2_instructions.py --workdir runs/instructions
    graft evaluate --task ifeval --run runs/instructions --against runs/smollm2

Prompts and answers are made from leads of an encyclopedia (`graft_instruction_pairs`); none shares
a run of eight words with a prompt of IFEval, though the kinds of instructions are IFEval's.

Expected, of 80 prompts of IFEval: 34.9% [27.7, 42.8] of instructions followed (strict), the base
28.4%, which is not told apart (docs/results/tasks.md).
Hardware: two CPU cores, Python 3.11, jax 0.10.2.
"""

from ml_collections import ConfigDict

from configs.finetune import smollm2_lora


def get_config() -> ConfigDict:
    config = smollm2_lora.get_config()
    config.steps = 100
    config.data = dict(
        sources=[
            dict(name="graft_instruction_pairs", unused_fields=["instruction_id_list", "kwargs"])
        ],
        objective=dict(kind="chat"),
        sequence_length=512,
        batch_size=6,
    )
    config.checks = dict(splits=("validation", "test"))
    config.evaluate_split = "validation"
    config.evaluate_tokens = 20_000
    config.schedule.learning_rate = 5e-4
    return config
