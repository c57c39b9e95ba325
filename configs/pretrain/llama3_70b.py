"""Pretrains a model of Llama 3.1 70B's shape (arXiv:2407.21783) on prepared text.

    graft preflight --config configs/pretrain/llama3_70b.py --topology v5p:8x8x8
    graft preflight --config configs/pretrain/llama3_70b.py --topology v5p:8x8x8 --slices 2 \\
        --config.data.batch_size=1024
    graft train --config configs/pretrain/llama3_70b.py --workdir gs://BUCKET/llama3_70b

docs/scaling.md has the arithmetic.
"""

from ml_collections import ConfigDict

from configs import presets
from configs.pretrain import llama3_8b

SHAPE = dict(llama3_8b.SHAPE, width=8192, layers=80, heads=64, mlp_width=28_672)


def get_config(accelerator: str | None = None) -> ConfigDict:
    config = llama3_8b.get_config()
    config.model = dict(SHAPE, remat="full")
    config.data.batch_size = 512
    config.schedule.learning_rate = 1.5e-4
    return presets.apply(config, accelerator)
