"""What experiments/methods asks of each tuned model: the quickstart's tasks, on fewer rows.

graft evaluate --config configs/methods/evaluate.py --run runs/smollm2_lora
"""

from ml_collections import ConfigDict

from configs.quickstart import smollm2_evaluate


def get_config() -> ConfigDict:
    config = smollm2_evaluate.get_config()
    config.text.max_tokens = 2_000
    config.choice.max_questions = 120
    return config
