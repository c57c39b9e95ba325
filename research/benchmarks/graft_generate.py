"""A contender: Graft's decoder, which answers a batch of prompts with the likeliest tokens."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from research import sharding
from research.benchmarks.graft_step import transformers_weights
from research.benchmarks.shapes import SHAPES
from research.generation import decode
from research.models.config import ModelConfig
from research.models.quantization import PRESETS
from research.models.transformer import Transformer
from research.runtime.memory import peak_memory_bytes

NO_END = -1
# what the harness asks for
peak_memory = peak_memory_bytes


def prompts(settings: Mapping[str, Any]) -> list[list[int]]:
    """Random tokens, the same for every side."""
    size = settings["rows"], settings["prompt_tokens"]
    vocabulary = SHAPES[settings["shape"]].llama.vocabulary
    return np.random.default_rng(0).integers(1, vocabulary, size).tolist()


def model_config(settings: Mapping[str, Any]) -> ModelConfig:
    """The shape's model in the type, its weights too."""
    dtype = settings["dtype"]
    return ModelConfig(
        **SHAPES[settings["shape"]].model,
        compute_dtype=dtype,
        storage=PRESETS["bfloat16"] if dtype == "bfloat16" else (),
        max_scan_layers=1 if jax.default_backend() == "cpu" else 0,
    )


def make_model(settings: Mapping[str, Any]) -> Transformer:
    """The shape's model with random weights, which are written to the settings' file, if any."""
    model = jax.jit(lambda key: Transformer(key, model_config(settings)))(jax.random.key(0))
    if settings.get("weights"):
        wide = jax.tree.map(lambda leaf: leaf.astype(np.float32), model)
        weights: dict[str, Any] = transformers_weights(wide)
        np.savez(settings["weights"], **weights)
    return model


def prepare(settings: Mapping[str, Any]):
    """A contender, see `research.benchmarks.harness`.

    Args:
      settings: shape, dtype, rows, prompt_tokens, new_tokens; weights, a file to write them to.
    """
    mesh, rules = sharding.one_device()
    texts = prompts(settings)
    answers: list[list[int]] = []
    with sharding.mesh_context(mesh, rules):
        model = make_model(settings)

    def run() -> float:
        start = time.perf_counter()
        with sharding.mesh_context(mesh, rules):
            answers[:] = decode.generate(model, texts, settings["new_tokens"], NO_END)
        return time.perf_counter() - start

    compile_seconds = run()
    weight_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model))
    info = {
        "answers": list(answers),
        "first_seconds": compile_seconds,
        "weight_bytes": weight_bytes,
        "jax": jax.__version__,
    }
    return info, run
