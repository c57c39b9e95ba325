"""Pretrains a model of SmolLM2 135M's shape (arXiv:2502.02737) on prepared text.

    graft preflight --config configs/pretrain/smollm2_135m.py --topology v5e:4x4
    graft train --config configs/pretrain/smollm2_135m.py --workdir runs/smollm2_135m

Small enough for a copy on every 8 devices; more devices are more rows.
"""

from ml_collections import ConfigDict

from configs.pretrain import llama3_8b

SHAPE = dict(
    vocabulary=49_152,
    width=576,
    layers=30,
    heads=9,
    kv_heads=3,
    mlp_width=1536,
    rotary_base=100_000.0,
    tie_embeddings=True,
    compute_dtype="bfloat16",
)


def get_config() -> ConfigDict:
    config = llama3_8b.get_config()
    config.model = dict(SHAPE, remat="products")
    config.tokenizer = "data/smollm2/tokenizer.json"
    config.data.sequence_length = 2048
    config.data.batch_size = 512
    config.schedule.learning_rate = 3e-3
    config.loss.vocabulary_chunks = 0
    config.mesh = dict(data=-1, fsdp=8)
    return config
