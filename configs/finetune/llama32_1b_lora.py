"""Tunes Llama-3.2-1B on licence notices with LoRA on an accelerator: many trials on one base.

    graft convert import --from FOLDER --out runs/llama32_1b
    graft train --config configs/finetune/llama32_1b_lora.py --workdir runs/llama32_1b_lora

Expected: 1.24 billion parameters in bfloat16, of which none trains, and 11.3 million of rank 16. By
the TPU compiler 16 trials of one row of 1,024 tokens on one base need 9.68 of a v5e chip's 15.75
GiB (docs/results/tpu.md). Nothing was trained.
Hardware: none; it was compiled for a TPU v5e.
"""

from ml_collections import ConfigDict

from configs import shapes, sources


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 1000
    config.init_from = "runs/llama32_1b"
    # what the base is; a plan needs no weights
    config.model = dict(
        shapes.LLAMA32_1B,
        compute_dtype="bfloat16",
        storage=((".*", "bfloat16"),),
        # 16 trials keep their layers' inputs only
        remat="full",
    )
    config.loss = dict(vocabulary_chunks=8)
    config.method = dict(kind="lora", rank=16, alpha=32.0)
    config.data = dict(sources.license_tuning(batch_size=1), sequence_length=1024)
    config.checks = dict(splits=("validation", "test"), other_template=True)
    config.optimizer = dict(kind="adamw")
    config.schedule = dict(learning_rate=3e-4, kind="cosine", warmup=20, final_share=0.0)
    return config
