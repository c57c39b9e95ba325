"""A contender: the same step in PyTorch, with transformers and PEFT."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from research.benchmarks.shapes import DECAY, RATE, SHAPES, transformers_config


def prepare(settings: Mapping[str, Any]):
    """The fastest that its users get without other packages: fused AdamW, its own choice of
    attention kernel, the whole model in the type, `torch.compile` where asked for."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    shape = SHAPES[settings["shape"]]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # as JAX's default: plain float32 on CPU, TF32 on NVIDIA
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**transformers_config(shape))
    config.use_cache = False
    with torch.device(device):
        model = transformers.LlamaForCausalLM(config).to(getattr(torch, settings["dtype"]))
    if settings["method"] == "lora":
        import peft

        lora = peft.LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(model, lora)
    if settings.get("weights"):
        load(model, np.load(settings["weights"]))
    if shape.remat == "full":
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if settings["method"] == "lora":
            model.enable_input_require_grads()
    model.train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=DECAY, fused=True
    )
    forward = torch.compile(model) if settings.get("compile") else model
    text = shape.text()
    tokens = torch.from_numpy(text[:, :-1].copy()).to(device)
    targets = torch.from_numpy(text[:, 1:].copy()).to(device)
    losses: list[float] = []

    def run() -> float:
        start = time.perf_counter()
        # `shift_labels`: the targets are given, nothing is shifted or cut
        loss = forward(input_ids=tokens, labels=targets, shift_labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses[:] = [*losses[-2:], loss.item()]  # waits for the device
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for _ in range(3):
        run()
    info = {
        "losses": list(losses),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "attention": config._attn_implementation,
    }
    return info, run


def peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    match = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(match[1]) * 1024 if match else 0


def load(model: torch.nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Every parameter from Graft's, by its name without what PEFT wraps around it."""
    parameters = dict(model.named_parameters())
    plain = {}
    for name in parameters:
        bare = name.removeprefix("base_model.model.")
        plain[bare.replace(".base_layer", "").replace(".default", "")] = name
    missing, surplus = plain.keys() - weights, weights.keys() - plain.keys()
    if missing or surplus:
        raise KeyError(f"not in Graft's: {sorted(missing)}; not in the peer: {sorted(surplus)}")
    with torch.no_grad():
        for name in weights:
            parameters[plain[name]].copy_(torch.from_numpy(weights[name]))
