"""What the quickstart asks of SmolLM2 and its tunes: the quickstart's tasks, on fewer rows.

    graft evaluate --config configs/quickstart/smollm2_evaluate.py \\
        --run runs/smollm2_lora

Expected: the base alone 32.9% [25.3, 45.9] of 240 notices right, 14.2% [9.7, 20.2] with three
worked examples; tuned models as in smollm2_tune.py. One seed, 95% intervals over notices. Three
minutes without the texts (`--config.text=None`).
Hardware: two CPU cores (AVX-512), Python 3.11, jax 0.10.2.
"""

from ml_collections import ConfigDict

from configs.quickstart import evaluate


def get_config(variant: str = "zero_shot") -> ConfigDict:
    config = evaluate.get_config(variant)
    config.text.max_tokens = 4_000
    config.text.batch_size = 8
    config.choice.max_questions = 240
    config.choice.batch_size = 8
    return config
