"""GGUF, the files of llama.cpp: tensors dequantised region by region, metadata as a config.

The `gguf` package reads the header and knows the quantised types. What it does not check is checked
here: that tensors lie inside the file, apart from each other, with the sizes of their types.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from research.interop.families import FAMILIES
from research.interop.family import (
    Family,
    Source,
    check_layers,
    check_tensors,
    parameter_shapes,
    sources,
)
from research.interop.fields import UnsupportedModelError
from research.interop.gguf import header, tokenizer
from research.interop.huggingface import CONFIG, read_config
from research.models import rotary
from research.models.config import ModelConfig, RotaryScaling

# Graft's modules -> GGUF's, alike for all families.
MODULES = {
    "embedding": "token_embd",
    "positions": "position_embd",
    "layers/*/attention_norm": "blk.*.attn_norm",
    "layers/*/attention/query": "blk.*.attn_q",
    "layers/*/attention/key": "blk.*.attn_k",
    "layers/*/attention/value": "blk.*.attn_v",
    "layers/*/attention/output": "blk.*.attn_output",
    "layers/*/attention/query_norm": "blk.*.attn_q_norm",
    "layers/*/attention/key_norm": "blk.*.attn_k_norm",
    "layers/*/attention_output/norm": "blk.*.post_attention_norm",
    "layers/*/mlp_norm": "blk.*.ffn_norm",
    "layers/*/mlp/gate": "blk.*.ffn_gate",
    "layers/*/mlp/up": "blk.*.ffn_up",
    "layers/*/mlp/down": "blk.*.ffn_down",
    "layers/*/mlp_output/norm": "blk.*.post_ffw_norm",
    "final_norm": "output_norm",
    "head": "output",
}
# GGUF's modules that hold several of Graft's side by side
JOINED = {
    ("layers/*/attention/query", "layers/*/attention/key", "layers/*/attention/value"): (
        "blk.*.attn_qkv"
    ),
    ("layers/*/mlp/gate", "layers/*/mlp/up"): "blk.*.ffn_up",
}
# GGUF's architectures -> families
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "gpt2": "gpt2",
    "phi3": "phi3",
}
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
FREQUENCIES = "rope_freqs.weight"
# layers of the largest Gemmas, by which llama.cpp knows that they scale scores by the width
LARGEST = {"gemma2": 46, "gemma3": 62}


class GGUFTensors:
    """The tensors of a GGUF file, as transformers has them: rows are outputs.

    Attributes:
      heads: how many heads the rows of a tensor are, where llama.cpp has its rotary order: a
        head's two halves interleaved.
      norm_offset: what llama.cpp has added to the norms' weights, Gemma's 1.
    """

    def __init__(self, reader: gguf.GGUFReader):
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.shapes = {
            name: tuple(int(n) for n in tensor.shape[::-1])
            for name, tensor in self._tensors.items()
        }
        self.dtypes = {name: tensor.tensor_type.name for name, tensor in self._tensors.items()}
        self.heads: dict[str, int] = {}
        self.norm_offset = 0.0

    def read(self, name: str, region: tuple[slice, ...]) -> np.ndarray:
        tensor = self._tensors[name]
        rows, *columns = region
        if name in self.heads:
            whole = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            heads, (outputs, *rest) = self.heads[name], whole.shape
            halves = whole.reshape(heads, outputs // heads // 2, 2, *rest).swapaxes(1, 2)
            return halves.reshape(outputs, *rest)[region]
        if not columns:
            vector = gguf.quants.dequantize(tensor.data, tensor.tensor_type)[rows]
            offset = self.norm_offset if name.endswith("norm.weight") else 0.0
            return vector - np.float32(offset)
        # whole rows: blocks of quantised numbers lie along them
        return gguf.quants.dequantize(tensor.data[rows], tensor.tensor_type)[:, *columns]


@dataclasses.dataclass(frozen=True)
class GGUFModel:
    """A file, checked: its tensors are those of its metadata.

    Attributes:
      content: the metadata as transformers' `config.json` says it.
      metadata: by GGUF's own keys.
      sources: where each parameter stands, by single-layer name.
    """

    path: Path
    family: Family
    config: ModelConfig
    content: Mapping[str, Any]
    metadata: Mapping[str, Any]
    tensors: GGUFTensors
    sources: Mapping[str, Source]
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """The type that an export is written in, where quantised weights have none of their own."""
        kinds = set(self.tensors.dtypes.values())
        return "bfloat16" if kinds == {"BF16"} else "float16" if kinds == {"F16"} else "float32"

    @property
    def dtypes(self) -> dict[str, str]:
        """Vectors are float32 in every file of llama.cpp, which says nothing of the model's own."""
        return {}

    @property
    def facts(self) -> dict[str, str]:
        """The licence, and how the weights were quantised, by the metadata."""
        kinds = sorted(set(self.tensors.dtypes.values()) - {"F32", "F16", "BF16"})
        facts = {"licence": self.metadata.get("general.license"), "quantised": ", ".join(kinds)}
        return {name: str(value) for name, value in facts.items() if value}

    def files(self) -> dict[str, bytes]:
        """The config and the tokenizer as transformers has them."""
        return self._files

    @functools.cached_property
    def _files(self) -> dict[str, bytes]:
        tokenizer_files = tokenizer.files(self.metadata, str(self.path))
        content = {name: value for name, value in self.content.items() if value is not None}
        return {CONFIG: json.dumps(content).encode(), **tokenizer_files}


def open_file(path: str | Path) -> GGUFModel:
    """Opens a GGUF file and checks that it holds exactly the model that it describes.

    Raises:
      UnsupportedModelError: a broken file, or an architecture, a type or tensors that do not fit.
    """
    path = Path(path)
    reader = _read(path)
    try:
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise UnsupportedModelError(f"{path}: broken metadata: {error}") from None
    tensors = GGUFTensors(reader)
    kind = metadata.get("general.architecture")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        choices = ", ".join(ARCHITECTURES)
        raise UnsupportedModelError(f"{path}: architecture {kind!r}; Graft knows {choices}")
    content = _config(kind, metadata, tensors, str(path))
    family = FAMILIES["mistral" if content.get("sliding_window") and kind == "llama" else
                      ARCHITECTURES[kind]]  # fmt: skip
    config = read_config(family, content, f"{path}: metadata")
    tensors.norm_offset = config.norm_offset
    if FREQUENCIES in tensors.shapes:
        config = dataclasses.replace(config, rotary_scaling=_scaling(config, tensors, path))
    names = tensor_names(family)
    check_layers(names, config.layers, tensors.shapes, str(path))
    places = sources(names, parameter_shapes(config))
    check_tensors(names, places, tensors.shapes, config.tie_embeddings, str(path))
    tensors.heads = rotary_heads(kind, config, places)
    return GGUFModel(path, family, config, content, metadata, tensors, places)


def tensor_names(family: Family) -> Family:
    """The family with GGUF's names for its tensors; llama.cpp joins what transformers joins."""
    joined = {JOINED[parts]: parts for parts in family.joined.values()}
    return dataclasses.replace(
        family,
        modules=MODULES | {ours: theirs for theirs, parts in joined.items() for ours in parts},
        joined=joined,
        transposed=True,
        ignored=(re.escape(FREQUENCIES),),
    )


def rotary_heads(kind: str, config: ModelConfig, places: Mapping[str, Source]) -> dict[str, int]:
    """Tensors whose heads have their halves interleaved, with their number of heads: Llama's
    queries and keys."""
    if kind != "llama":
        return {}
    heads = {"query": config.heads, "key": config.kv_heads}
    split_names = [(name.split("/"), source.name) for name, source in places.items()]
    return {
        tensor: heads[parts[3]]
        for parts, tensor in split_names
        if parts[2:3] == ["attention"] and parts[3] in heads
    }


def _read(path: Path) -> gguf.GGUFReader:
    """The header, with every tensor inside the file and apart from the others."""
    header.check(path)
    size = path.stat().st_size
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise UnsupportedModelError(f"{path} is no whole GGUF file: {error}") from None
    end = 0
    for tensor in sorted(reader.tensors, key=lambda tensor: int(tensor.data_offset)):
        name, kind = tensor.name, tensor.tensor_type
        if kind.name not in TYPES:
            raise UnsupportedModelError(
                f"{path}: {name} is of type {kind.name}; Graft reads {TYPES}"
            )
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        numbers = math.prod(int(n) for n in tensor.shape)
        if numbers % block or numbers // block * block_bytes != int(tensor.n_bytes):
            raise UnsupportedModelError(
                f"{path}: {name} has {numbers} numbers in {tensor.n_bytes} B"
            )
        start = int(tensor.data_offset)
        if start < end:
            raise UnsupportedModelError(f"{path}: {name} overlaps the tensor before it")
        end = start + int(tensor.n_bytes)
    if end > size:
        raise UnsupportedModelError(
            f"{path} is cut short: {end:,} bytes by its header, {size:,} there"
        )
    return reader


def _config(
    kind: str, metadata: Mapping[str, Any], tensors: GGUFTensors, where: str
) -> dict[str, Any]:
    """The metadata as fields of transformers' `config.json`."""

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{kind}.{key}", default)
        # numbers are stored in single precision: 1e-5, not 9.99999975e-06
        return float(str(np.float32(value))) if isinstance(value, float) else value

    if get("expert_count"):
        raise UnsupportedModelError(f"{where}: a mixture of experts; Graft has none")
    table = tensors.shapes.get("token_embd.weight", (0, 0))
    ids = {
        f"{role}_token_id": metadata.get(f"tokenizer.ggml.{name}_token_id")
        for role, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    tie_embeddings = "output.weight" not in tensors.shapes
    if kind == "gpt2":
        return ids | {
            "vocab_size": table[0],
            "n_embd": get("embedding_length"),
            "n_layer": get("block_count"),
            "n_head": get("attention.head_count"),
            "n_inner": get("feed_forward_length"),
            "n_positions": get("context_length"),
            "layer_norm_epsilon": get("attention.layer_norm_epsilon"),
            "tie_word_embeddings": tie_embeddings,
            "model_type": "gpt2",
        }
    heads, width = get("attention.head_count"), get("embedding_length")
    content = ids | {
        "model_type": ARCHITECTURES[kind],
        "vocab_size": table[0],
        "hidden_size": width,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv"),
        "head_dim": get("attention.key_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base"),
        "max_position_embeddings": get("context_length"),
        "sliding_window": get("attention.sliding_window"),
        "tie_word_embeddings": tie_embeddings,
    }
    if get("rope.scaling.type", "none") not in ("none", "linear"):
        raise UnsupportedModelError(f"{where}: rope scaling {get('rope.scaling.type')!r}")
    if get("rope.scaling.type") == "linear":
        content["rope_scaling"] = {"rope_type": "linear", "factor": get("rope.scaling.factor")}
    if kind == "llama":
        content["attention_bias"] = "blk.0.attn_q.bias" in tensors.shapes
        content["mlp_bias"] = "blk.0.ffn_up.bias" in tensors.shapes
    if kind.startswith("gemma") and heads and width:
        # as llama.cpp: the largest of each divides by the width's share instead
        is_largest = LARGEST[kind] == content["num_hidden_layers"]
        size = content["head_dim"] or 256
        content["query_pre_attn_scalar"] = width // heads if is_largest else size
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            if get(name) is not None:  # absent ones are llama.cpp's defaults, transformers' own
                content[name] = get(name)
    return content


def _scaling(config: ModelConfig, tensors: GGUFTensors, path: Path) -> RotaryScaling:
    """The scaling behind Llama 3's stretched frequencies, which GGUF stores one by one."""
    stretching = tensors.read(FREQUENCIES, (slice(None),))
    plain = np.asarray(rotary.frequencies(config, None))
    lengths = (8192, *(2**power for power in range(9, 18)))
    for factor, original in itertools.product((8.0, 32.0, 2.0, 4.0, 16.0, 64.0), lengths):
        scaling = RotaryScaling("llama3", factor, original_length=original)
        candidate = plain / np.asarray(rotary.frequencies(config, scaling))
        if candidate.shape == stretching.shape and np.allclose(candidate, stretching, rtol=1e-3):
            return scaling
    raise UnsupportedModelError(f"{path}: {FREQUENCIES} is no scaling of Llama 3's")
