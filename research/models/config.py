"""The shape of a decoder: differences between families of models are data, not code."""

from __future__ import annotations

import dataclasses
from typing import Literal

from research.config.schema import Count, NonNegative, Positive, PositiveNumber
from research.models.attention import AUTO, BACKENDS

# how a weight is stored
StorageKind = Literal["float32", "bfloat16", "int8", "nf4"]
Remat = Literal["none", "full", "products", "offload"]
LinearName = Literal["query", "key", "value", "output", "gate", "up", "down"]


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """Scaling of rotary frequencies for contexts longer than pretraining's."""

    # linear divides all of them (Chen 2023, arXiv:2306.15595); llama3 keeps the high ones
    kind: Literal["linear", "llama3"]
    # divisor of the frequencies
    factor: PositiveNumber
    # llama3: wavelengths over original_length / low_factor are scaled by the whole factor
    low_factor: PositiveNumber = 1.0
    # llama3: wavelengths under original_length / high_factor are not scaled
    high_factor: PositiveNumber = 4.0
    # llama3: the context length of pretraining
    original_length: Positive = 8192


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder and how it is computed; defaults are Llama's."""

    # vocabulary size V; at least the tokenizer's, often rounded up
    vocabulary: Positive
    # model width D
    width: Positive
    # number of layers L
    layers: Positive
    # number of query heads H
    heads: Positive
    # number of key and value heads K, each shared by H / K query heads
    kv_heads: Positive
    # feed-forward width F
    mlp_width: Positive
    # head size N; 0 takes width / heads
    head_size: Count = 0
    # base of the rotary frequencies
    rotary_base: PositiveNumber = 10_000.0
    # the base in layers with a window; None: `rotary_base`
    rotary_base_in_windows: PositiveNumber | None = None
    # scaling of the frequencies; not in layers with a window that have a base of their own
    rotary_scaling: RotaryScaling | None = None
    # number of learned positions, in place of rotary ones; 0: rotary
    learned_positions: Count = 0
    # rms, or layer: with mean and bias too
    norm: Literal["rms", "layer"] = "rms"
    # added to the mean square inside every norm
    norm_epsilon: PositiveNumber = 1e-5
    # added to the scales of norms: 1 where a family stores scale - 1
    norm_offset: NonNegative = 0.0
    # norms after attention and MLP too
    post_norms: bool = False
    # norms of every head's query and key ("QK-norm")
    head_norms: bool = False
    # the linears with a bias
    biases: tuple[LinearName, ...] = ()
    # activation of the MLP; gelu_tanh is GPT-2's approximation
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    # whether the MLP has a gate: activation(gate(x)) * up(x)
    gated: bool = True
    # attention scores are divided by its square root; 0: the head size
    score_size: Count = 0
    # soft caps of attention scores and of logits: cap * tanh(x / cap); 0: none
    score_cap: NonNegative = 0.0
    logit_cap: NonNegative = 0.0
    # factor of the embeddings
    embedding_scale: PositiveNumber = 1.0
    # whether the head uses the embedding's table
    tie_embeddings: bool = True
    # attention windows in tokens, by layer, repeated cyclically; 0: no window
    windows: tuple[Count, ...] = (0,)
    # ordered (pattern over names such as layers/7/mlp/up, embedding and head, type): how weights
    # are stored; float32 where none matches. Weights in other types cannot train
    storage: tuple[tuple[str, StorageKind], ...] = ()
    # attention backend: auto (the platform's fastest), plain, blocked (CPU), cudnn (NVIDIA) or
    # splash (TPU)
    attention: str = AUTO
    # most layers in one scan; 0: no limit (accelerators, deep models), 1: unrolled (fastest on CPU)
    max_scan_layers: Count = 0
    # what the backward pass recomputes. none; full: everything but layer inputs; offload: the same,
    # with layer inputs in the host's memory; products: everything but products. On CPU it saves
    # memory in scans only (XLA there recomputes an unrolled layer at once)
    remat: Remat = "none"
    # number of chunks of units in which the MLP is computed, one after the other and again in the
    # backward pass (but with `remat: products`, which keeps their products), to save memory; 0: one
    mlp_chunks: Count = 0
    # type of activations; parameters are stored in float32, or by `storage`
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if not self.windows:
            raise ValueError("model: `windows` is empty; (0,) lets every layer see everything")
        if min(self.heads, self.kv_heads, self.width) < 1:
            return  # the schema names the field
        if self.heads % self.kv_heads:
            raise ValueError(f"model: {self.heads} heads do not share {self.kv_heads} key heads")
        if not self.head_size and self.width % self.heads:
            raise ValueError(f"model: width {self.width} does not divide by {self.heads} heads")
        if self.head_dim % 2:
            raise ValueError(f"model: rotary positions need an even head size, not {self.head_dim}")
        if not self.gated and "gate" in self.biases:
            raise ValueError("model: `biases` names gate, which a model without `gated` lacks")
        if self.attention not in (AUTO, *BACKENDS):
            names = ", ".join((AUTO, *BACKENDS))
            raise ValueError(f"model: unknown attention {self.attention!r}; there are: {names}")

    @property
    def recomputes_layers(self) -> bool:
        """Whether the backward pass recomputes whole layers."""
        return self.remat in ("full", "offload")

    @property
    def storage_kinds(self) -> list[str]:
        """The types that its weights are stored in."""
        return sorted({kind for _, kind in self.storage}) or ["float32"]

    @property
    def full_precision(self) -> ModelConfig:
        """The same model with every weight stored in float32."""
        return dataclasses.replace(self, storage=())

    @property
    def head_dim(self) -> int:
        """The head size N: `head_size`, or width / heads."""
        return self.head_size or self.width // self.heads

    def check_length(self, tokens: int, what: str = "") -> None:
        """Refuses a text that is longer than the table of learned positions.

        Args:
          what: the text's name in the error; the default is its number of tokens.

        Raises:
          ValueError: naming both.
        """
        if self.learned_positions and tokens > self.learned_positions:
            raise ValueError(
                f"{what or f'{tokens} tokens'} do not fit the model's {self.learned_positions} "
                "learned positions"
            )

    def window(self, layer: int) -> int:
        """The attention window of a layer, 0 for none."""
        return self.windows[layer % len(self.windows)]

    @property
    def window_kinds(self) -> tuple[int, ...]:
        """The distinct windows, ascending."""
        return tuple(sorted({self.window(layer) for layer in range(self.layers)}))


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """Changes of how a model is computed; None: as in its config."""

    attention: str | None = None
    max_scan_layers: Count | None = None
    remat: Remat | None = None
    mlp_chunks: Count | None = None
    compute_dtype: Literal["float32", "bfloat16"] | None = None

    def apply(self, model: ModelConfig) -> ModelConfig:
        """The model's config with these changes."""
        changes = {name: v for name, v in dataclasses.asdict(self).items() if v is not None}
        return dataclasses.replace(model, **changes)
