"""Starts from data beside PEFT's own, on the same weights and texts."""

import itertools

import jax
import numpy as np
import pytest

from research import sharding, tree
from research.batch import Batch
from research.checkpoints import runs
from research.interop import importing
from research.methods import LoRA
from research.sharding import MeshConfig
from research.training import starting
from tests.helpers import rounding, tiny_run

TOKENS = np.random.default_rng(0).integers(0, 288, (2, 20)).astype(np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random Llama with a tokenizer, as transformers saves it, and imported."""
    import torch
    import transformers

    world = tiny_run.world(tmp_path_factory.getbasetemp())
    folder = tmp_path_factory.mktemp("starts")
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=288, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(shape).save_pretrained(folder / "theirs")
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(world.folder / "tokenizer.json"),
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
    ).save_pretrained(folder / "theirs")
    importing.import_model(importing.open_model(folder / "theirs"), folder / "base")
    return folder


@pytest.mark.heavy
def test_eva_starts_from_the_directions_that_pefts_does(folder, monkeypatch):
    """Directions are known but for their sign; PEFT's random projections are switched off."""
    import peft as their_peft
    import torch
    import transformers
    from peft.tuners.lora import eva

    pca = eva.IncrementalPCA
    monkeypatch.setattr(eva, "IncrementalPCA", lambda **k: pca(**k | {"lowrank": False}))
    config = their_peft.LoraConfig(
        r=3, target_modules=["q_proj", "down_proj"], init_lora_weights="eva",
        eva_config=their_peft.EvaConfig(rho=1.0), task_type="CAUSAL_LM",
    )  # fmt: skip
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder / "theirs")
    texts = [{"input_ids": torch.from_numpy(TOKENS).long()}]
    expected = their_peft.get_eva_state_dict(plain, texts, config, show_progress_bar=False)

    positions = np.broadcast_to(np.arange(TOKENS.shape[1], dtype=np.int32), TOKENS.shape)
    ones = np.ones(TOKENS.shape)
    batch = Batch(TOKENS, TOKENS, ones.astype(np.float32), ones.astype(np.int32), positions)
    method = LoRA((r".*/attention/query", r".*/mlp/down"), rank=3, start="eva")
    run, mesh = runs.open_run(folder / "base"), MeshConfig(data=1).make(jax.devices()[:1])
    model = method.attach(runs.load_model(run, mesh, sharding.RULES), jax.random.key(0))
    gradients = jax.jit(starting.sum_gradients, static_argnames=("names", "by_row", "parts"))
    model, _ = method.start_from_data(model, {}, [batch], gradients)
    starts = tree.unstack(tree.flatten(model))
    places = {"self_attn.q_proj": "attention/query", "mlp.down_proj": "mlp/down"}
    for layer, (their_place, place) in itertools.product(range(2), places.items()):
        directions = expected[f"model.layers.{layer}.{their_place}"].numpy()
        ours = np.asarray(starts[f"layers/{layer}/{place}/site/lora/a"]).T
        signs = np.sign((ours * directions).sum(1, keepdims=True))
        # a direction turns by rounding of activations and sums over tokens, over the gap between
        # two variances, here a hundredth of the largest
        count = rounding.forward_roundings(run.model) + TOKENS.size
        rounding.assert_close(ours, signs * directions, roundings=count, scale=100.0)
