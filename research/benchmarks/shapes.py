"""The shapes that are measured, for Graft and for transformers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from configs import shapes

# AdamW's, for every side: everything decays, gradients are clipped at norm 1
RATE, DECAY = 1e-3, 0.1


@dataclasses.dataclass(frozen=True)
class LlamaShape:
    """The fields of a ModelConfig that Llamas differ in."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_width: int
    rotary_base: float = 1e4
    tie_embeddings: bool = True


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model's shape and a batch of it."""

    rows: int
    length: int
    llama: LlamaShape
    remat: str = "none"

    @property
    def model(self) -> dict[str, Any]:
        """Arguments of ModelConfig."""
        return dataclasses.asdict(self.llama)

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    def text(self) -> np.ndarray:
        """Random tokens [B,S+1]: all but the last are read, all but the first predicted."""
        random = np.random.default_rng(0)
        return random.integers(0, self.llama.vocabulary, (self.rows, self.length + 1))


SHAPES = {
    "smollm2": Shape(4, 256, LlamaShape(**shapes.SMOLLM2_135M)),
    "quickstart": Shape(16, 256, LlamaShape(**shapes.QUICKSTART)),
    # meta-llama/Llama-3.2-1B and Llama-3.1-8B, without their scaling of positions
    "llama_1b": Shape(8, 2048, LlamaShape(128256, 2048, 16, 32, 8, 8192, 5e5), remat="full"),
    "llama_8b": Shape(
        4, 2048, LlamaShape(128256, 4096, 32, 32, 8, 14336, 5e5, False), remat="full"
    ),
    # for tests of the harness
    "tiny": Shape(2, 16, LlamaShape(64, 32, 2, 4, 2, 48, 1e4)),
}


def transformers_config(shape: Shape) -> dict[str, Any]:
    """The arguments of transformers' LlamaConfig for the same model."""
    llama = shape.llama
    return dict(
        vocab_size=llama.vocabulary,
        hidden_size=llama.width,
        intermediate_size=llama.mlp_width,
        num_hidden_layers=llama.layers,
        num_attention_heads=llama.heads,
        num_key_value_heads=llama.kv_heads,
        rope_theta=llama.rotary_base,
        tie_word_embeddings=llama.tie_embeddings,
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
    )
