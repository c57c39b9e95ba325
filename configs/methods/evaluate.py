"""What experiments/methods asks of each tuned model: the quickstart's tasks, on fewer rows.

    graft evaluate --config configs/methods/evaluate.py --run runs/smollm2_lora

Expected: the base alone 35.0% [23.4, 56.2] of 120 notices right (95% interval over notices); tuned
models as experiments/methods/README.md says.
Hardware: two CPU cores (AVX-512), Python 3.11, jax 0.10.2.
"""

from ml_collections import ConfigDict

from configs.quickstart import smollm2_evaluate


def get_config() -> ConfigDict:
    config = smollm2_evaluate.get_config()
    config.text.max_tokens = 2_000
    config.choice.max_questions = 120
    return config
