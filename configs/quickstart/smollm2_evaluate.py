"""What the quickstart asks of SmolLM2 and its tunes: the quickstart's tasks, on fewer rows.

    graft evaluate --config configs/quickstart/smollm2_evaluate.py \\
        --run runs/smollm2_lora
"""

from ml_collections import ConfigDict

from configs.quickstart import evaluate


def get_config(how: str = "zero_shot") -> ConfigDict:
    config = evaluate.get_config(how)
    config.text.max_tokens = 4_000
    config.text.batch_size = 8
    config.choice.max_questions = 240
    config.choice.batch_size = 8
    return config
