"""Tunes the quickstart's base on licence notices, or trains the same model on them alone.

    graft train --config configs/quickstart/tune.py:full \\
        --workdir runs/quickstart/full
    graft train --config configs/quickstart/tune.py:lora \\
        --workdir runs/quickstart/lora
    graft train --config configs/quickstart/tune.py:scratch \\
        --workdir runs/quickstart/scratch

The three differ in method, rate and start; data and number of steps are the same.
"""

from ml_collections import ConfigDict

from configs.quickstart import pretrain

BASE = "runs/quickstart/pretrain"
TEMPLATE = "Notice:\n{prompt}\nLicence: "


def get_config(how: str = "full") -> ConfigDict:
    config = ConfigDict()
    config.steps = 300

    notices = dict(name="graft_licences", fields=dict(prompt="text", completion="label"))
    config.data = dict(
        sources=[notices],
        objective="supervised",
        objective_settings=dict(template=TEMPLATE),
        # longer notices are cut, answers never
        sequence_length=128,
        batch_size=16,
    )
    # refuses to train on a notice that evaluate.py asks for
    config.checks = dict(splits=("validation", "test"))
    config.optimizer = dict(name="adamw")
    config.schedule = dict(kind="cosine", warmup=10, final_share=0.0)

    # best validation accuracy of the rates tried, at 240 steps and one seed: 1, 2, 4e-3 for full
    # and scratch, 2.5, 5, 10e-3 for LoRA; the validation intervals are +-7 points wide
    match how:
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
            raise ValueError(f"tune.py:{how}: there are full, lora and scratch")
    return config
