"""A contender: the same step with TRL's own losses, in PyTorch with transformers and PEFT."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import datasets
import numpy as np
import peft
import tokenizers
import torch
import transformers
import trl

from research.benchmarks import torch_step
from research.benchmarks.losses import answers
from research.benchmarks.shapes import DECAY, RATE, SHAPES, transformers_config

# what it calls them
_TYPES = {"dpo": "sigmoid", "ipo": "ipo"}

# what the harness asks for
peak_memory = torch_step.peak_memory


def prepare(settings: Mapping[str, Any]):
    """`compute_loss` of TRL's trainer, then what its trainer does with a loss: backward, clipping
    and fused AdamW."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_float32_matmul_precision("highest")
    config = transformers.LlamaConfig(**transformers_config(SHAPES[settings["shape"]]))
    model = transformers.LlamaForCausalLM(config).to(getattr(torch, settings["dtype"]))
    lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, lora)
    if settings.get("weights"):
        torch_step.load(model, np.load(settings["weights"]))
    compute_loss = (_grpo if settings["loss"] == "grpo" else _dpo)(model, settings)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=DECAY, fused=True
    )
    losses: list[float] = []

    def run() -> float:
        start = time.perf_counter()
        loss = compute_loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses[:] = [*losses[-2:], loss.item()]
        return time.perf_counter() - start

    for _ in range(3):
        run()
    return {"losses": list(losses), "torch": torch.__version__, "trl": trl.__version__}, run


def _dpo(model: Any, settings: Mapping[str, Any]) -> Callable[[], torch.Tensor]:
    """DPO's loss or IPO's, with the reference's likelihoods as TRL computes them beforehand."""
    prompts, both, _ = answers(settings)
    record = {"prompt": "1 2", "chosen": "3", "rejected": "4"}
    trainer = trl.DPOTrainer(
        model=model,
        args=trl.DPOConfig(beta=0.1, loss_type=_TYPES[settings["loss"]], **_arguments()),
        train_dataset=datasets.Dataset.from_list([record] * 2),
        processing_class=_tokenizer(),
    )
    trainer.precompute_ref_logps = True
    both_sides = np.concatenate([both[:, 0], both[:, 1]])
    texts = np.concatenate([np.tile(prompts, (2, 1)), both_sides], axis=1)
    tokens = torch.from_numpy(texts)
    completion = torch.zeros_like(tokens)
    completion[:, prompts.shape[1] :] = 1
    sums = _log_probs(model, tokens, both.shape[2]).sum(1)
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "completion_mask": completion,
        "ref_chosen_logps": sums[: len(prompts)],
        "ref_rejected_logps": sums[len(prompts) :],
    }
    return lambda: trainer.compute_loss(trainer.model, inputs)


def _grpo(model: Any, settings: Mapping[str, Any]) -> Callable[[], torch.Tensor]:
    """GRPO's loss, a mean over tokens, with the likelihoods of the model that drew the answers."""
    prompts, both, advantages = answers(settings)
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.GRPOConfig(beta=0.0, loss_type="bnpo", num_generations=2, **_arguments()),
        train_dataset=datasets.Dataset.from_list([{"prompt": "1 2"}] * 2),
        processing_class=_tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 1
    questions, replies = np.repeat(prompts, 2, axis=0), both.reshape(-1, both.shape[2])
    tokens = torch.from_numpy(np.concatenate([questions, replies], axis=1))
    inputs = {
        "prompt_ids": torch.from_numpy(questions),
        "prompt_mask": torch.ones(questions.shape, dtype=torch.long),
        "completion_ids": torch.from_numpy(replies),
        "completion_mask": torch.ones(replies.shape, dtype=torch.long),
        "advantages": torch.from_numpy(advantages.reshape(-1)),
        "old_per_token_logps": _log_probs(model, tokens, both.shape[2]),
        "num_items_in_batch": torch.tensor(float(replies.size)),
    }
    return lambda: trainer.compute_loss(trainer.model, inputs)


def _arguments() -> dict[str, Any]:
    """Settings of a trainer that only computes its loss."""
    return dict(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
    )


def _tokenizer() -> Any:
    """Words that are numbers: a trainer wants one, and the answers here are tokens already."""
    words = tokenizers.models.WordLevel({str(n): n for n in range(8)}, unk_token="0")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="0", eos_token="7", unk_token="0"
    )


def _log_probs(model: Any, tokens: torch.Tensor, count: int) -> torch.Tensor:
    """[N,A] log-probabilities of the last `count` tokens, by the model as it is."""
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[:, -count - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, tokens[:, -count:, None])[..., 0]
