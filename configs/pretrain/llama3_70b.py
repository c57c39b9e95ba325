"""Pretrains a model of Llama 3.1 70B's shape (arXiv:2407.21783) on prepared text.

    graft preflight --config configs/pretrain/llama3_70b.py --topology v5p:8x8x8
    graft preflight --config configs/pretrain/llama3_70b.py --topology v5p:8x8x8 --slices 2 \\
        --config.data.batch_size=1024
    graft train --config configs/pretrain/llama3_70b.py --workdir gs://BUCKET/llama3_70b

Expected, on paper: on two slices of 512 v5p chips, one row a chip, at best 871 thousand tokens/s,
80% of peak (docs/results/scaling.md has the arithmetic). Speed and loss of a real run: not
measured.
Hardware: Cloud TPU v5p; never run on one.
"""

from ml_collections import ConfigDict

from configs import presets, shapes
from configs.pretrain import llama3_8b


def get_config(accelerator: str | None = None) -> ConfigDict:
    config = llama3_8b.get_config()
    config.model = dict(shapes.LLAMA3_70B, compute_dtype="bfloat16", remat="full")
    config.data.batch_size = 512
    config.schedule.learning_rate = 1.5e-4
    return presets.apply(config, accelerator)
