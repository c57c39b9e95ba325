"""Models of transformers, in and out: the same numbers on both sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.interop import huggingface, importing
from research.interop.family import architecture, parameter_shapes
from research.interop.fields import UnsupportedModelError
from research.models.transformer import Transformer
from tests.helpers import rounding

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CYCLE = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
# a family's class in transformers, and settings that make its differences count
CASES = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama-3": ("Llama", {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 5, "head_dim": 16}),
    "qwen2": ("Qwen2", {}),
    "qwen2-windows": (
        "Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
    ),
    "qwen3": ("Qwen3", {"head_dim": 12}),
    "phi3": ("Phi3", {"pad_token_id": 0}),
    "phi3-window": ("Phi3", {"pad_token_id": 0, "sliding_window": 5, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2", {"sliding_window": 5, "head_dim": 16, "query_pre_attn_scalar": 24}),
    "gemma3": ("Gemma3", {"sliding_window": 5, "head_dim": 16, "layer_types": CYCLE}),
    "gpt2": (
        "GPT2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 96}
    ),
}  # fmt: skip


def their_model(case, **more):
    """A tiny random model with nothing left at its trivial start."""
    import torch
    import transformers

    name, changes = CASES[case]
    changes = changes | more
    text = "Text" if name == "Gemma3" else ""
    config = getattr(transformers, f"{name}{text}Config")
    shape = {} if name == "GPT2" else TINY
    head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, name + head)(config(**shape | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.mul_(3)
    return model


def their_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.float().numpy()


def our_logits(folder, tokens):
    model = jax.eval_shape(lambda key: Transformer(key, folder.config), jax.random.key(0))
    arrays = dict(importing.read_parameters(folder, parameter_shapes(folder.config)))
    model = tree.unflatten(model, tree.restack(arrays, tree.flatten(model)))
    rows, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    run = jax.jit(lambda m: m.logits(m.hidden(tokens, jnp.ones_like(tokens), positions)[0]))
    return run(model)


@pytest.mark.heavy
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_and_the_export_is_the_same_bits(case, tmp_path):
    import transformers
    from safetensors.numpy import load_file

    model = their_model(case)
    model.save_pretrained(tmp_path / "theirs")
    tokens = np.random.default_rng(0).integers(0, 96, (2, 24)).astype(np.int32)
    expected = their_logits(model, tokens)
    assert expected.std() > 0.1
    theirs = huggingface.open_folder(tmp_path / "theirs")
    actual, count = our_logits(theirs, tokens), rounding.forward_roundings(theirs.config, 24)
    rounding.assert_close(actual, expected, roundings=count)

    values = dict(importing.read_parameters(theirs, parameter_shapes(theirs.config)))

    def read_parameter(name):
        return np.asarray(values[name])

    names = huggingface.write_folder(
        tmp_path / "ours",
        theirs.config,
        read_parameter,
        kind=theirs.family.kind,
        files={huggingface.CONFIG: b'{"pad_token_id": 0}'},  # Phi-3's own is token 32,000
        file_size=20_000,
    )
    assert sorted(set(names)) == sorted({source.name for source in theirs.sources.values()})
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    again = huggingface.open_folder(tmp_path / "ours")
    assert architecture(again.config) == architecture(theirs.config)
    for name, values in before.items():
        everything = tuple(slice(None) for _ in values.shape)
        np.testing.assert_array_equal(again.tensors.read(name, everything), values, err_msg=name)
    again_theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(again_theirs) is type(model)
    np.testing.assert_array_equal(their_logits(again_theirs, tokens), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "'longrope' is not among"),
        ({"rope_scaling": {"type": "su", "short_factor": [1.0]}}, "'su' is not among default"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "Phi-3 has no such rope scaling"),
        ({"partial_rotary_factor": 0.75}, "partial_rotary_factor is 0.75; Graft computes 1.0"),
    ],
)
def test_a_phi3_that_graft_does_not_compute_is_refused(fields, message):
    content = TINY | {"model_type": "phi3"} | fields
    family = huggingface.find_family(content, "config.json")
    with pytest.raises(UnsupportedModelError, match=message):
        huggingface.read_config(family, content, "config.json")
