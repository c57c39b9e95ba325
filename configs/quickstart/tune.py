"""Tunes the quickstart's base on licence notices, or trains the same model on them alone.

    python -m research.train --config configs/quickstart/tune.py:full \\
        --workdir runs/quickstart/full
    python -m research.train --config configs/quickstart/tune.py:lora \\
        --workdir runs/quickstart/lora
    python -m research.train --config configs/quickstart/tune.py:scratch \\
        --workdir runs/quickstart/scratch

The three differ in method, rate and start; data and number of steps are the same.
"""

from ml_collections import ConfigDict

RUNS = "runs/quickstart"
TEMPLATE = "Notice:\n{prompt}\nLicence: "

MODEL = dict(
    vocabulary=4096,
    width=256,
    layers=4,
    heads=4,
    key_heads=2,
    hidden=704,
    attention="blocked",
    longest_stack=1,
)


def get_config(how: str = "full") -> ConfigDict:
    config = ConfigDict()
    config.steps = 180

    config.data = dict(
        sources=[dict(name="graft_licences", fields=dict(prompt="text", completion="label"))],
        objective="supervised",
        objective_settings=dict(template=TEMPLATE),
        sequence_length=256,
        batch_size=32,
    )
    config.optimizer = dict(name="adamw")
    config.schedule = dict(kind="cosine", warmup=10, final_share=0.0)
    config.evaluate_split = "validation"

    # each rate is the best of a sweep on the validation split
    match how:
        case "full":
            config.init_from = f"{RUNS}/pretrain"
            config.schedule.rate = 1e-3
        case "lora":
            config.init_from = f"{RUNS}/pretrain"
            config.method = dict(kind="lora", rank=8, alpha=16.0)
            config.schedule.rate = 5e-3
        case "scratch":
            config.model = dict(MODEL)
            config.tokenizer = f"{RUNS}/tokenizer.json"
            config.schedule.rate = 1e-3
        case _:
            raise ValueError(f"tune.py:{how}: there are full, lora and scratch")
    return config
