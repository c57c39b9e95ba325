"""Tunes SmolLM2-135M-Instruct on licence notices, or trains its shape on them alone.

    graft convert import --from smollm2 --out runs/smollm2
    graft train --config configs/quickstart/smollm2_tune.py:full \\
        --workdir runs/smollm2_full

`:lora` is configs/finetune/smollm2_lora.py; `:full` and `:scratch` differ from it in method, rate
and start.
"""

from ml_collections import ConfigDict

from configs.finetune import smollm2_lora

MODEL = dict(
    vocabulary=49152,
    width=576,
    layers=30,
    heads=9,
    kv_heads=3,
    mlp_width=1536,
    rotary_base=100_000.0,
)


def get_config(how: str = "full") -> ConfigDict:
    config = smollm2_lora.get_config()
    match how:
        case "full":
            config.method = dict(kind="full")
            config.schedule.learning_rate = 1e-4  # held-out loss 0.112; 0.133 at 3e-4
        case "lora":
            pass
        case "scratch":
            config.method = dict(kind="full")
            config.schedule.learning_rate = 1e-3  # the only one tried
            config.tokenizer = config.init_from
            config.init_from = None
            config.model = MODEL
        case _:
            raise ValueError(f"smollm2_tune.py:{how}: there are full, lora and scratch")
    return config
