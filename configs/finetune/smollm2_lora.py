"""Tunes SmolLM2-135M-Instruct on licence notices with LoRA: a real base, in minutes on a CPU.

    tools/convert.py import --from smollm2 --out runs/smollm2
    python -m research.train --config configs/finetune/smollm2_lora.py --workdir runs/smollm2_lora
    tools/convert.py export --from runs/smollm2_lora --out exports/licences

The base is already instruction-tuned, and was stored in 4 bits before it came here: what is
measured on it is measured on that.
"""

from ml_collections import ConfigDict

BASE = "runs/smollm2"
TEMPLATE = "Notice:\n{prompt}\nLicence: "


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 100
    config.init_from = BASE
    config.method = dict(kind="lora", rank=16, alpha=32.0)

    notices = dict(name="graft_licences", fields=dict(prompt="text", completion="label"))
    config.data = dict(
        sources=[notices],
        objective="supervised",
        objective_settings=dict(template=TEMPLATE),
        sequence_length=256,
        batch_size=4,
    )
    config.optimizer = dict(name="adamw")
    config.schedule = dict(rate=5e-4, kind="cosine", warmup=10, final_share=0.0)
    config.log_every = 5
    return config
