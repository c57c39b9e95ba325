"""Pretrains a model of SmolLM2 135M's shape (arXiv:2502.02737) on prepared text.

    tools/preflight.py --config configs/pretrain/smollm2_135m.py --topology v5e:4x4
    python -m research.train --config configs/pretrain/smollm2_135m.py --workdir runs/smollm2_135m

Small enough for a copy on every 8 devices; more devices are more rows.
"""

from ml_collections import ConfigDict

SHAPE = dict(
    vocabulary=49_152,
    width=576,
    layers=30,
    heads=9,
    key_heads=3,
    hidden=1536,
    rotary_base=100_000.0,
    tied=True,
    compute_dtype="bfloat16",
)


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 100_000
    config.model = dict(SHAPE, remat="products")
    config.tokenizer = "data/smollm2/tokenizer.json"
    config.data = dict(
        sources=[dict(name="web", kind="prepared", path="data/web")],
        objective="causal",
        sequence_length=2048,
        batch_size=512,
    )
    config.optimizer = dict(name="adamw")
    config.decay = 0.1
    config.schedule = dict(rate=3e-3, kind="cosine", warmup=2000, final_share=0.1)
    config.mesh = dict(data=-1, fsdp=8)
    config.checkpoint = dict(every=1000)
    return config
