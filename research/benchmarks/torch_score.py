"""A contender: scoring of answers in transformers, behind a cache of each question."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
import transformers

from research.benchmarks import torch_step
from research.benchmarks.score import texts
from research.benchmarks.torch_generate import load_model

# what the harness asks for
peak_memory = torch_step.peak_memory


def prepare(settings: Mapping[str, Any]):
    """A contender, see `research.benchmarks.harness` and `graft_score.prepare`."""
    model = load_model(settings)
    questions, answers = (torch.tensor(part, device=model.device) for part in texts(settings))
    scores: list[list[float]] = []

    def run() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            parts = [_score(model, part, answers) for part in questions.split(settings["rows"])]
        scores[:] = torch.cat(parts).tolist()  # waits for the device
        return time.perf_counter() - start

    run()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"scores": list(scores), **versions}, run


def _score(model: Any, questions: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """[b,C] nats of C answers [C,A] after questions [b,S], whose keys are computed once."""
    count, length = answers.shape
    cache = transformers.DynamicCache()
    behind = {"past_key_values": cache, "use_cache": True}
    prompt_output = model(input_ids=questions, logits_to_keep=1, **behind)
    first = prompt_output.logits[:, -1].float().log_softmax(-1)[:, answers[:, 0]]
    if length == 1:
        return first
    cache.batch_repeat_interleave(count)
    repeated = answers.repeat(len(questions), 1)
    output = model(input_ids=repeated[:, :-1], **behind)
    nats = output.logits.float().log_softmax(-1).gather(-1, repeated[:, 1:, None])
    return first + nats.sum((1, 2)).view(len(questions), count)
