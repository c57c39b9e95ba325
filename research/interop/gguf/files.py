"""GGUF, the files of llama.cpp, as models: checked against their metadata."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from research.interop.gguf import metadata as keys
from research.interop.gguf import tokenizer
from research.interop.gguf.architectures import ARCHITECTURES, rotary_heads, tensor_names
from research.interop.gguf.tensors import PLAIN_TYPES, GGUFTensors, open_parts
from research.interop.huggingface import CONFIG, read_config
from research.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class GGUFModel:
    """A model, checked: its tensors are those of its metadata.

    Attributes:
      content: the metadata as transformers' `config.json` says it.
      metadata: by GGUF's own keys.
      sources: where each parameter stands, by single-layer name.
      pre_tokenizer: how the tokenizer cuts text, where the metadata does not say it.
    """

    path: Path
    family: Family
    config: ModelConfig
    content: Mapping[str, Any]
    metadata: Mapping[str, Any]
    tensors: GGUFTensors
    sources: Mapping[str, Source]
    notes: tuple[str, ...] = ()
    pre_tokenizer: str | None = None

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
        kinds = sorted(set(self.tensors.dtypes.values()) - set(PLAIN_TYPES))
        facts = {"licence": self.metadata.get("general.license"), "quantised": ", ".join(kinds)}
        return {name: str(value) for name, value in facts.items() if value}

    def files(self) -> dict[str, bytes]:
        """The config and the tokenizer as transformers has them."""
        return self._files

    @functools.cached_property
    def _files(self) -> dict[str, bytes]:
        tokenizer_files = tokenizer.files(self.metadata, str(self.path), self.pre_tokenizer)
        content = {name: value for name, value in self.content.items() if value is not None}
        return {CONFIG: json.dumps(content).encode(), **tokenizer_files}


def open_file(path: str | Path, pre_tokenizer: str | None = None) -> GGUFModel:
    """Opens a GGUF file and checks that it holds exactly the model that it describes.

    Args:
      path: the file, or any of those that a model is split over.
      pre_tokenizer: llama.cpp's name for how the tokenizer cuts text, for a file that lacks it.

    Raises:
      UnsupportedModelError: a broken file, or an architecture, a key, a type or tensors that do
        not fit.
    """
    path = Path(path)
    metadata, tensors = open_parts(path)
    kind = metadata.get("general.architecture")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        choices = ", ".join(ARCHITECTURES)
        raise UnsupportedModelError(f"{path}: architecture {kind!r}; Graft knows {choices}")
    tokenizer.check_types(metadata, str(path))
    keys.check_keys(kind, metadata, tensors, str(path))
    content = keys.config_content(kind, metadata, tensors, str(path))
    family = FAMILIES[ARCHITECTURES[kind]]
    config = read_config(family, content, f"{path}: metadata")
    keys.check_shape(kind, metadata, config, str(path))
    tensors.norm_offset = config.norm_offset
    names = tensor_names(family)
    if names.ignored:
        config = keys.with_llama3_scaling(config, tensors, path)
    check_layers(names, config.layers, tensors.shapes, str(path))
    places = sources(names, parameter_shapes(config))
    check_tensors(names, places, tensors.shapes, config.tie_embeddings, str(path))
    tensors.heads = rotary_heads(kind, config, places)
    return GGUFModel(
        path,
        family,
        config,
        content,
        metadata,
        tensors,
        places,
        keys.notes(kind, metadata),
        pre_tokenizer,
    )
