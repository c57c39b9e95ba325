"""A contender: Graft's train step, compiled as `research.train` compiles it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from research import memory, metrics, program, sharding, tree
from research.batch import Batch
from research.data.pipeline import DataConfig
from research.data.sources import SourceConfig
from research.experiment import Experiment
from research.methods import Full, LoRA
from research.models.config import ModelConfig
from research.optimizers import OptimizerConfig
from research.schedules import ScheduleConfig
from tools.benchmarks.shapes import DECAY, RATE, SHAPES

METHODS = {"full": Full(), "lora": LoRA(rank=16, alpha=32.0)}

peak_memory = metrics.peak_memory_bytes


def experiment(settings: Mapping[str, Any]) -> Experiment:
    """The experiment of a shape."""
    shape = SHAPES[settings["shape"]]
    cpu = jax.default_backend() == "cpu"
    model = shape.model | dict(
        longest_stack=1 if cpu else 0,
        remat=shape.remat,
        compute_dtype=settings["dtype"],
    )
    nothing = SourceConfig("none", "jsonl", "none")  # batches are made here
    return Experiment(
        steps=1000,
        data=DataConfig((nothing,), sequence_length=shape.length, batch_size=shape.rows),
        model=ModelConfig(**model | settings.get("model", {})),
        tokenizer="none",
        method=METHODS[settings["method"]],
        optimizer=OptimizerConfig(settings.get("optimizer", "adamw")),
        schedule=ScheduleConfig(rate=RATE, kind="constant"),
        decay=DECAY,
    )


def batch(shape_name: str) -> Batch:
    """Random tokens, one document a row, every token trained on."""
    shape = SHAPES[shape_name]
    size, text = (shape.rows, shape.length), shape.text()
    positions = np.broadcast_to(np.arange(shape.length, dtype=np.int32), size)
    return Batch(
        tokens=text[:, :-1].astype(np.int32),
        targets=text[:, 1:].astype(np.int32),
        weights=np.ones(size, np.float32),
        segments=np.ones(size, np.int32),
        positions=np.ascontiguousarray(positions),
    )


def prepare(settings: Mapping[str, Any]):
    """A contender, see `tools.benchmarks.harness`; `settings` are shape, method and dtype, and
    where wanted optimizer, fields of the model, and a file to write the weights to."""
    return build(settings)[1:]


def build(settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any], Callable[[], float]]:
    """The compiled step, facts about it, and a function that runs it once on random tokens."""
    plan = program.make_program(experiment(settings), None)
    with sharding.use(plan.mesh, plan.experiment.sharding_rules):
        state = plan.fresh_state()
        if settings.get("weights"):
            np.savez(settings["weights"], **transformers_weights(state.model))
        hyper, rows = plan.place_numbers(), plan.place(batch(settings["shape"]))
        start = time.perf_counter()
        step = plan.compile(batch(settings["shape"]))
        compiled = time.perf_counter() - start
    needed = memory.Memory.of(step)

    def run() -> float:
        nonlocal state, last
        start = time.perf_counter()
        state, last = step(state, rows, hyper)
        jax.block_until_ready((state, last))
        return time.perf_counter() - start

    last: dict[str, jax.Array] = {}
    losses = []
    for _ in range(3):
        run()
        losses.append(float(last["loss"]))
    info = {
        "losses": losses,
        "flops_per_token": plan.flops_per_token,
        "trainable_parameters": plan.trainable_parameters,
        "argument_bytes": needed.arguments,
        "temporary_bytes": needed.temporaries,
        "compile_seconds": compiled,
        "jax": jax.__version__,
    }
    return step, info, run


_NAMES = {
    "attention_norm/scale": "input_layernorm.weight",
    "mlp_norm/scale": "post_attention_layernorm.weight",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/output": "self_attn.o_proj",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
}
_LEAVES = {"kernel": "weight", "site/lora/a": "lora_A.weight", "site/lora/b": "lora_B.weight"}


def transformers_weights(model: Any) -> dict[str, np.ndarray]:
    """A Llama's parameters under transformers' and PEFT's names and in their layout."""
    weights = {}
    flat = tree.flatten(model)
    for name, leaf in flat.items():
        if name.endswith("/scale") and "/site/" in name:
            continue  # alpha / rank is in PEFT's config
        layers = tree.layer_names(name)
        values = np.asarray(leaf) if tree.is_stacked(name) else np.asarray(leaf)[None]
        for single, value in zip(layers, values, strict=True):
            weights[_transformers_name(single)] = value.T if _transposed(single) else value
    return weights


def _transformers_name(name: str) -> str:
    match name.split("/"):
        case ["embedding", "kernel"]:
            return "model.embed_tokens.weight"
        case ["final_norm", "scale"]:
            return "model.norm.weight"
        case ["head", "kernel"]:
            return "lm_head.weight"
        case ["layers", number, *_] if name.endswith("norm/scale"):
            return f"model.layers.{number}." + _NAMES[name.split("/", 2)[2]]
        case ["layers", number, part, linear, *leaf]:
            return f"model.layers.{number}.{_NAMES[f'{part}/{linear}']}.{_LEAVES['/'.join(leaf)]}"
    raise KeyError(name)


def _transposed(name: str) -> bool:
    return name != "embedding/kernel" and not name.endswith("norm/scale")
