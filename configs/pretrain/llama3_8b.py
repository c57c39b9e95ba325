"""Pretrains a model of Llama 3.1 8B's shape (arXiv:2407.21783) on prepared text.

    graft preflight --config configs/pretrain/llama3_8b.py --topology v5p:4x4x4
    graft train --config configs/pretrain/llama3_8b.py --workdir gs://BUCKET/llama3_8b

`llama3_8b.py:v5p` takes what configs/presets.py recommends for an accelerator. The text is made by
`graft prepare` with the tokenizer below, which has at most the model's 128,256 tokens. Every device
holds its part of all weights (`mesh.fsdp`); docs/results/scaling.md says where that ends.

Expected, from the compiler: on 64 v5p chips, one row a chip, 4.35 GiB a chip with
`model.mlp_chunks=8`; on 256 v5e chips 2.25 GiB. At best 485 and 833 thousand tokens/s, by a
roofline (experiments/topologies/table.md). Speed and loss of a real run: not measured.
Hardware: Cloud TPU, compiled for v4, v5e, v5p, v6e and TPU7x; never run on one.
"""

from ml_collections import ConfigDict

from configs import presets, shapes


def get_config(accelerator: str | None = None) -> ConfigDict:
    config = ConfigDict()
    config.steps = 100_000
    config.model = dict(shapes.LLAMA3_8B, compute_dtype="bfloat16", remat="full")
    config.tokenizer = "data/llama3/tokenizer.json"
    config.data = dict(
        sources=[dict(name="web", kind="prepared", path="data/web")],
        objective=dict(kind="causal"),
        sequence_length=4096,
        batch_size=256,
    )
    config.optimizer = dict(kind="adamw")
    config.weight_decay = 0.1
    config.schedule = dict(learning_rate=3e-4, kind="cosine", warmup=2000, final_share=0.1)
    config.loss = dict(vocabulary_chunks=16)
    config.mesh = dict(data=1, fsdp=-1)
    config.checkpoint = dict(every=1000)
    return presets.apply(config, accelerator)
