"""A contender: `generate` of transformers, with its own cache and attention."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers

from research.benchmarks import torch_step
from research.benchmarks.graft_generate import prompts
from research.benchmarks.shapes import SHAPES, transformers_config

# what the harness asks for
peak_memory = torch_step.peak_memory


def load_model(settings: Mapping[str, Any]) -> Any:
    """The shape's model with the weights that Graft wrote, on the GPU if there is one."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    config = transformers.LlamaConfig(**transformers_config(SHAPES[settings["shape"]]))
    with torch.device(device):
        model = transformers.LlamaForCausalLM(config).to(getattr(torch, settings["dtype"])).eval()
    torch_step.load(model, np.load(settings["weights"]))
    return model


def prepare(settings: Mapping[str, Any]):
    """A contender, see `research.benchmarks.harness` and `graft_generate.prepare`."""
    model = load_model(settings)
    model.generation_config.eos_token_id = None  # answers have one length
    tokens = torch.tensor(prompts(settings), device=model.device)
    answers: list[list[int]] = []

    def run() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            whole = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=settings["new_tokens"],
                eos_token_id=None,
                do_sample=False,
                pad_token_id=0,
            )
        answers[:] = whole[:, tokens.shape[1] :].tolist()  # waits for the device
        return time.perf_counter() - start

    run()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"answers": list(answers), **versions}, run
