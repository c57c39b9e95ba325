"""Tunes the quickstart's base on licence notices, or trains the same model on them alone.

    graft train --config configs/quickstart/tune.py:full \\
        --workdir runs/quickstart/full
    graft train --config configs/quickstart/tune.py:lora \\
        --workdir runs/quickstart/lora
    graft train --config configs/quickstart/tune.py:scratch \\
        --workdir runs/quickstart/scratch

The three differ in method, learning rate and start; data and number of steps are the same.

Expected, of 718 test notices, with 95% intervals over notices: full 76.5% [71.8, 80.9] right in
55 s, LoRA 56.5% [51.1, 63.1] in 48 s, scratch 63.8% [58.7, 70.3] in 52 s. One seed; an earlier run
from scratch, at half the rate and 240 steps, got 69.2%.
Hardware: two CPU cores (AVX-512), Python 3.11, jax 0.10.2.
"""

from ml_collections import ConfigDict

from configs import sources
from configs.quickstart import pretrain

BASE = "runs/quickstart/pretrain"


def get_config(variant: str = "full") -> ConfigDict:
    config = ConfigDict()
    config.steps = 300
    config.data = sources.license_tuning(batch_size=16)
    # refuses to train on a notice that evaluate.py asks for
    config.checks = dict(splits=("validation", "test"))
    config.optimizer = dict(kind="adamw")
    config.schedule = dict(kind="cosine", warmup=10, final_share=0.0)

    # best validation accuracy of the rates tried, at 240 steps and one seed: 1, 2, 4e-3 for full
    # and scratch, 2.5, 5, 10e-3 for LoRA; the validation intervals are +-7 points wide
    match variant:
        case "full":
            config.init_from = BASE
            config.schedule.learning_rate = 4e-3
        case "lora":
            config.init_from = BASE
            config.method = dict(kind="lora", rank=16, alpha=32.0)
            config.schedule.learning_rate = 2.5e-3
        case "scratch":
            config.model = pretrain.MODEL
            config.tokenizer = pretrain.TOKENIZER
            config.schedule.learning_rate = 4e-3
        case _:
            raise ValueError(f"tune.py:{variant}: there are full, lora and scratch")
    return config
