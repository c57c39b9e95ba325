"""Pretrains a model of Llama 3.1 8B's shape (arXiv:2407.21783) on prepared text.

    graft preflight --config configs/pretrain/llama3_8b.py --topology v5p:4x4x4
    graft train --config configs/pretrain/llama3_8b.py --workdir gs://BUCKET/llama3_8b

llama3_8b.py:v5p takes what configs/presets.py recommends for an accelerator.
The text: graft prepare with the tokenizer below, which has the model's 128,256 words at
most. Every device holds its part of all weights (mesh.fsdp); docs/scaling.md says where that ends.
"""

from ml_collections import ConfigDict

from configs import presets

SHAPE = dict(
    vocabulary=128_256,
    width=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    mlp_width=14_336,
    rotary_base=500_000.0,
    rotary_scaling=dict(
        kind="llama3", factor=8.0, low_factor=1.0, high_factor=4.0, original_length=8192
    ),
    tie_embeddings=False,
    compute_dtype="bfloat16",
)


def get_config(accelerator: str | None = None) -> ConfigDict:
    config = ConfigDict()
    config.steps = 100_000
    config.model = dict(SHAPE, remat="full")
    config.tokenizer = "data/llama3/tokenizer.json"
    config.data = dict(
        sources=[dict(name="web", kind="prepared", path="data/web")],
        objective="causal",
        sequence_length=4096,
        batch_size=256,
    )
    config.optimizer = dict(name="adamw")
    config.weight_decay = 0.1
    config.schedule = dict(learning_rate=3e-4, kind="cosine", warmup=2000, final_share=0.1)
    config.loss = dict(vocabulary_chunks=16)
    config.mesh = dict(data=1, fsdp=-1)
    config.checkpoint = dict(every=1000)
    return presets.apply(config, accelerator)
