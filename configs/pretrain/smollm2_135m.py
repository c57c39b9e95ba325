"""Pretrains a model of SmolLM2 135M's shape (arXiv:2502.02737) on prepared text.

    graft preflight --config configs/pretrain/smollm2_135m.py --topology v5e:4x4
    graft train --config configs/pretrain/smollm2_135m.py --workdir runs/smollm2_135m

A model this small needs no more than 8 devices to share its weights; more devices hold copies and
read more rows.

Expected: not measured. `graft preflight` says memory and the best possible speed.
Hardware: Cloud TPU v5e, 16 chips; never run on one.
"""

from ml_collections import ConfigDict

from configs import shapes
from configs.pretrain import llama3_8b


def get_config() -> ConfigDict:
    config = llama3_8b.get_config()
    config.model = dict(
        shapes.SMOLLM2_135M, tie_embeddings=True, compute_dtype="bfloat16", remat="products"
    )
    config.tokenizer = "data/smollm2/tokenizer.json"
    config.data.sequence_length = 2048
    config.data.batch_size = 512
    config.schedule.learning_rate = 3e-3
    config.loss.vocabulary_chunks = 0
    config.mesh = dict(data=-1, fsdp=8)
    return config
