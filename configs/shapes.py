"""Shapes of models that several configs use: what is given to `config.model`.

A shape says how many layers of which width; how it is computed (`compute_dtype`, `remat`,
`max_scan_layers`) is the config's own choice: `dict(shapes.SMOLLM2_135M, remat="products")`.
"""

from typing import Any

# small enough to pretrain on two CPU cores in three minutes: 1.57M parameters
QUICKSTART: dict[str, Any] = dict(
    vocabulary=2048, width=192, layers=3, heads=3, kv_heads=1, mlp_width=512
)
# HuggingFaceTB/SmolLM2-135M (arXiv:2502.02737): 134.5M parameters
SMOLLM2_135M: dict[str, Any] = dict(
    vocabulary=49_152,
    width=576,
    layers=30,
    heads=9,
    kv_heads=3,
    mlp_width=1536,
    rotary_base=100_000.0,
)
# meta-llama/Llama-3.1-8B (arXiv:2407.21783): 8.03B parameters
LLAMA3_8B: dict[str, Any] = dict(
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
)
# meta-llama/Llama-3.2-1B: 1.24B parameters
LLAMA32_1B: dict[str, Any] = dict(
    LLAMA3_8B,
    width=2048,
    layers=16,
    mlp_width=8192,
    rotary_scaling=dict(
        kind="llama3", factor=32.0, low_factor=1.0, high_factor=4.0, original_length=8192
    ),
    tie_embeddings=True,
)
# meta-llama/Llama-3.1-70B: 70.6B parameters
LLAMA3_70B: dict[str, Any] = dict(LLAMA3_8B, width=8192, layers=80, heads=64, mlp_width=28_672)
