"""Weights of the base in an adapter's file: what PEFT computes with them is computed here."""

import json

import numpy as np
import pytest

from research.checkpoints import runs
from research.interop import exporting, importing
from research.interop.peft import exporting as peft
from research.interop.peft import importing as peft_importing
from research.methods import Partial, Several
from tests.interop.peft.test_peft import logits_close, our_logits, their_logits

CASES = {
    "both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "head": {"modules_to_save": ["lm_head"]},
    "table": {"modules_to_save": ["embed_tokens"]},
    "norm": {"modules_to_save": ["model.norm", "mlp"], "target_modules": ["q_proj"]},
    "kept-tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "rows": {"trainable_token_indices": [3, 7, 200]},
    "rows-apart": {"trainable_token_indices": {"embed_tokens": [3, 7], "lm_head": [9]}},
    "bias": {"bias": "all"},
    "saved": {},
}


@pytest.fixture(scope="module", params=["tied", "untied"])
def theirs(request, world, tmp_path_factory):
    """A tiny random Llama with biases, as transformers saves it, and its import."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=288, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, attention_bias=True,
        tie_word_embeddings=request.param == "tied",
    )  # fmt: skip
    transformers.LlamaForCausalLM(shape).save_pretrained(folder / "theirs")
    tokenizer = (world.folder / "tokenizer.json").read_text()
    (folder / "theirs" / "tokenizer.json").write_text(tokenizer)
    (folder / "theirs" / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    importing.import_model(importing.open_model(folder / "theirs"), folder / "base")
    return folder


@pytest.mark.heavy
@pytest.mark.parametrize("case", CASES)
def test_what_stands_in_for_the_base_is_the_same_here_and_back(case, theirs, tmp_path):
    import peft as their_peft
    import torch
    import transformers

    load = transformers.LlamaForCausalLM.from_pretrained
    plain = load(theirs / "theirs")
    settings = {"r": 2, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM"}
    config = their_peft.LoraConfig(**settings | CASES[case])
    model = their_peft.get_peft_model(plain, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or (case == "saved" and "embed_tokens" in name):
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=case == "saved" or "auto")
    expected = their_logits(model)

    base = runs.open_run(theirs / "base")
    peft_importing.import_adapter(tmp_path / "adapter", base, tmp_path / "run")
    run = runs.open_run(tmp_path / "run")
    assert isinstance(run.method, Several) and isinstance(run.method.of[1], Partial)
    logits_close(our_logits(run), expected, run)
    assert np.abs(our_logits(run) - our_logits(base)).max() > 0.01

    exporting.export_huggingface(run, tmp_path / "merged")
    logits_close(their_logits(load(tmp_path / "merged")), expected, run)
    peft.export_adapter(run, tmp_path / "again", "somebody/base")
    fields = json.loads((tmp_path / "again" / peft.CONFIG).read_text())
    in_rows = case == "rows" or (case == "rows-apart" and not base.model.tie_embeddings)
    assert ("trainable_token_indices" in fields) == in_rows
    again = their_peft.PeftModel.from_pretrained(load(theirs / "theirs"), tmp_path / "again")
    logits_close(their_logits(again), expected, run)
    peft_importing.import_adapter(tmp_path / "again", base, tmp_path / "back")
    assert runs.open_run(tmp_path / "back").fingerprint == run.fingerprint
