"""A contender: Graft's train step, compiled as `graft train` compiles it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from research import sharding, tree
from research.batch import Batch
from research.benchmarks.shapes import DECAY, RATE, SHAPES, Shape
from research.data.config import DataConfig
from research.data.sources import JsonlConfig
from research.experiment import Experiment, MethodConfig
from research.losses.cross_entropy import CrossEntropy
from research.methods import (
    IA3,
    Bank,
    Bottleneck,
    DoRA,
    Full,
    LoRA,
    Partial,
    Prefix,
    Prompt,
    Several,
    VeRA,
)
from research.methods.bottleneck import PFEIFFER
from research.methods.loha import LoHa
from research.models.config import ModelConfig
from research.models.quantization import PRESETS
from research.optim.optimizers import OPTIMIZERS
from research.optim.schedules import ScheduleConfig
from research.runtime import memory
from research.runtime.memory import peak_memory_bytes
from research.training import program
from research.training.session import Session

METHODS: dict[str, MethodConfig] = {
    "full": Full(),
    "lora": LoRA(rank=16, alpha=32.0),
    "pissa": LoRA(rank=16, alpha=16.0, start="pissa"),
    "dora": DoRA(rank=16, alpha=32.0),
    "ia3": IA3(),
    "houlsby": Bottleneck(width=64),
    "pfeiffer": Bottleneck(targets=(PFEIFFER,), width=64),
    "parallel": Bottleneck(width=64, placement="parallel", activation="relu", scale=4.0),
    "vera": VeRA(rank=256),
    "loha": LoHa(rank=16, alpha=16.0),
    "prompt": Prompt(length=20),
    "prefix": Prefix(length=20),
    "prefix_mlp": Prefix(length=20, reparameterized=True, mlp_width=256),
    "lora_and_prompt": Several(of=(LoRA(rank=16, alpha=32.0), Prompt(length=20))),
    "norms": Partial(),
    "bank8": Bank(of=LoRA(rank=16, alpha=32.0), names=tuple(f"adapter{i}" for i in range(8))),
}

# what the harness asks for
peak_memory = peak_memory_bytes


@dataclasses.dataclass(frozen=True)
class StepFacts:
    """Facts about a compiled step, and its first three losses."""

    losses: list[float]
    flops_per_token: float
    recomputed_flops_per_token: float
    trainable_parameters: int
    optimizer_bytes: int
    argument_bytes: int
    temporary_bytes: int
    compile_seconds: float
    # its version
    jax: str


def shape_of(settings: Mapping[str, Any]) -> Shape:
    """The shape; with `rows` the same tokens in so many rows."""
    shape = SHAPES[settings["shape"]]
    rows = settings.get("rows", shape.rows)
    return dataclasses.replace(shape, rows=rows, length=shape.tokens // rows)


def experiment(settings: Mapping[str, Any]) -> Experiment:
    """The experiment of a shape."""
    shape = shape_of(settings)
    is_cpu = jax.default_backend() == "cpu"
    storage = {"storage": PRESETS[settings["stored"]]} if "stored" in settings else {}
    model = shape.model | dict(
        max_scan_layers=1 if is_cpu else 0,
        remat=shape.remat,
        compute_dtype=settings["dtype"],
    )
    nothing = JsonlConfig("none", "none")  # batches are made here
    return Experiment(
        steps=1000,
        data=DataConfig((nothing,), sequence_length=shape.length, batch_size=shape.rows),
        model=ModelConfig(**model | storage | settings.get("model", {})),
        tokenizer="none",
        method=METHODS[settings["method"]],
        optimizer=OPTIMIZERS[settings.get("optimizer", "adamw")](),
        loss=CrossEntropy(chunk=settings.get("chunk", CrossEntropy.chunk)),
        schedule=ScheduleConfig(learning_rate=RATE, kind="constant"),
        weight_decay=DECAY,
    )


def batch(settings: Mapping[str, Any]) -> Batch:
    """Random tokens, one document a row, every token trained on; a bank's adapters in turn."""
    shape, method = shape_of(settings), METHODS[settings["method"]]
    size, text = (shape.rows, shape.length), shape.text()
    positions = np.broadcast_to(np.arange(shape.length, dtype=np.int32), size)
    adapters = len(method.bank_names)
    return Batch(
        tokens=text[:, :-1].astype(np.int32),
        targets=text[:, 1:].astype(np.int32),
        weights=np.ones(size, np.float32),
        segments=np.ones(size, np.int32),
        positions=np.ascontiguousarray(positions),
        adapter=np.arange(shape.rows, dtype=np.int32) % adapters if adapters else None,
    )


def prepare(settings: Mapping[str, Any]):
    """A contender, see `research.benchmarks.harness`.

    Args:
      settings: shape, method and dtype; where they differ from the defaults optimizer, rows, stored
        (how the base is), model (fields of it), chunk (columns of the loss's); and weights, a file
        to write them to.
    """
    _, facts, run = build(settings)
    return dataclasses.asdict(facts), run


def build(settings: Mapping[str, Any]) -> tuple[Any, StepFacts, Callable[[], float]]:
    """The compiled step, facts about it, and a function that runs it once on random tokens."""
    return build_step(
        experiment(settings), lambda plan, model: batch(settings), settings.get("weights")
    )


def build_step(
    experiment: Experiment,
    make_batch: Callable[[program.Program, Any], Batch],
    weights_file: str | None = None,
) -> tuple[Any, StepFacts, Callable[[], float]]:
    """As `build`, of an experiment and the batch that it reads at every step.

    Args:
      make_batch: takes the program and the model that it starts with.
      weights_file: where the model's weights are written, under transformers' names.
    """
    plan = program.make_program(experiment, None)
    with sharding.mesh_context(plan.mesh, plan.experiment.sharding_rules):
        own, base = Session().fresh_state(plan)
        model = plan.model(own, base)
        if weights_file:
            weights: dict[str, Any] = transformers_weights(model)
            np.savez(weights_file, **weights)
        host_rows = make_batch(plan, model)
        hyper, rows = plan.place_hyper(), plan.place(host_rows)
        start = time.perf_counter()
        step = plan.compile(host_rows)
        compile_seconds = time.perf_counter() - start
    step_memory = memory.StepMemory.of(step)
    last: dict[str, jax.Array] = {}

    def run() -> float:
        nonlocal own, last
        start = time.perf_counter()
        own, last = step(own, base, rows, hyper)
        jax.block_until_ready((own, last))
        return time.perf_counter() - start

    losses = []
    for _ in range(3):
        run()
        losses.append(float(last["loss"]))
    facts = StepFacts(
        losses=losses,
        flops_per_token=plan.flops_per_token,
        recomputed_flops_per_token=plan.flops.recomputed * (plan.model_config.remat == "full"),
        trainable_parameters=plan.trainable_parameters,
        optimizer_bytes=optimizer_bytes(plan),
        argument_bytes=step_memory.arguments,
        temporary_bytes=step_memory.temporaries,
        compile_seconds=compile_seconds,
        jax=jax.__version__,
    )
    return step, facts, run


def optimizer_bytes(plan: program.Program) -> int:
    """Bytes of the optimizer's state."""
    return sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(plan.state_shapes.optimizer)
    )


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
            weights[_transformers_name(single)] = value.T if _is_transposed(single) else value
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


def _is_transposed(name: str) -> bool:
    return name != "embedding/kernel" and not name.endswith("norm/scale")
