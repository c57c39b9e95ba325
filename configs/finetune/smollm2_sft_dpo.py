"""Supervised tuning, then preferences (DPO), on one LoRA of SmolLM2-135M-Instruct: two phases.

    graft convert import --from smollm2 --out runs/smollm2
    graft train --config configs/finetune/smollm2_sft_dpo.py --workdir runs/smollm2_sft_dpo
    graft evaluate --config configs/quickstart/smollm2_evaluate.py \\
        --run runs/smollm2_sft_dpo --config.text=None

The second phase goes on with the adapter of the first, which is its reference: its first loss is
ln 2. The first alone is RUN/phases/1_supervised.

Expected: not measured yet.
Hardware: two CPU cores, Python 3.11, jax 0.10.2.
"""

from ml_collections import ConfigDict

from configs.finetune import smollm2_dpo, smollm2_lora


def get_config() -> ConfigDict:
    config = smollm2_lora.get_config()
    preferences = smollm2_dpo.get_config()
    names = ("steps", "loss", "data", "schedule", "evaluate_split", "evaluate_tokens")
    changes = {name: preferences[name] for name in names}
    config.phases = [
        dict(name="supervised", changes={"steps": 40}),
        dict(name="preferences", changes=changes),
    ]
    return config
