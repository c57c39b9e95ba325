"""Keys of GGUF files: each is computed as llama.cpp does, or refused by its name."""

import json

import jax
import numpy as np
import pytest

from research.interop import importing
from research.interop.fields import UnsupportedModelError
from research.interop.gguf import files, metadata
from research.interop.gguf import tokenizer as gguf_tokenizer
from research.models.config import RotaryScaling
from tests.helpers import gguf_file
from tests.interop.gguf.test_gguf import llama_cpp
from tests.interop.test_huggingface import our_logits


def open_with(path, kind="llama", general=None, tensors=None, words=None, **keys):
    """A tiny file with these keys besides those of its shape; dots are two underscores."""
    whole = {name.replace("__", "."): value for name, value in keys.items()}
    shape = gguf_file.shape(kind) | whole
    gguf_file.write(path / "x.gguf", kind, shape, words, tensors, general)
    return files.open_file(path / "x.gguf")


REFUSALS = {
    "causal": ({"attention__causal": False}, "llama.attention.causal is False: tokens see those"),
    "yarn": ({"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}, "type is 'yarn'"),
    "longrope": ({"rope__scaling__type": "longrope"}, "type is 'longrope'; Graft computes none"),
    "yarn's share": ({"rope__scaling__yarn_ext_factor": 1.0}, "yarn_ext_factor is 1.0"),
    "attention factor": ({"rope__scaling__attn_factor": 1.19}, "attn_factor is 1.19"),
    "NTK": ({"rope__scaling__alpha": 1000.0}, "rope.scaling.alpha is 1000.0"),
    "part of a head": ({"rope__dimension_count": 8}, "dimension_count is 8; Graft computes 16"),
    "sections": ({"rope__dimension_sections": [2, 2, 2, 2]}, "dimension_sections is no key"),
    "scale": ({"attention__scale": 0.015625}, "llama.attention.scale is 0.015625"),
    "alibi": ({"attention__max_alibi_bias": 8.0}, "max_alibi_bias is 8.0"),
    "clamp": ({"attention__clamp_kqv": 6.0}, "clamp_kqv is 6.0"),
    "values": ({"attention__value_length": 8}, "value_length is 8; Graft computes 16"),
    "experts": ({"expert_count": 8, "expert_used_count": 2}, "expert_count is 8: a mixture"),
    "residual": ({"residual_scale": 0.22}, "residual_scale is 0.22"),
    "logits": ({"logit_scale": 0.0625}, "logit_scale is 0.0625"),
    "embedding": ({"embedding_scale": 12.0}, "embedding_scale is 12.0"),
    "caps": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
    "pooling": ({"pooling_type": 3}, "pooling_type is 3: a model for embedding"),
    "more words": ({"vocab_size": 300}, "vocab_size is 300; Graft computes 258"),
    "new key": ({"attention__sink_count": 4}, "llama.attention.sink_count is no key that Graft"),
    "no epsilon": ({"attention__layer_norm_rms_epsilon": None}, "rms_epsilon is missing"),
    "no window": ({"kind": "gemma2", "attention__sliding_window": 0}, "window is 0, of which"),
    "no cap": ({"kind": "gemma2", "attn_logit_softcapping": 0.0}, "softcapping is 0, of which"),
    "no cap of logits": ({"kind": "gemma2", "final_logit_softcapping": 0.0}, "is 0, of which"),
    "cap of scores": ({"kind": "gemma3", "attn_logit_softcapping": 2.0}, "Graft computes 0.0"),
    "pattern": ({"kind": "gemma2", "attention__sliding_window": 8,
                 "attention__sliding_window_pattern": [False]}, "pattern is not that"),
    "adapter": ({"general": {"general.type": "adapter"}}, "'adapter', which is no model; give"),
    "projector": ({"general": {"general.type": "mmproj"}}, "'mmproj', which is no model"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_would_change_the_result_is_refused_by_its_name(case, tmp_path):
    keys, match = REFUSALS[case]
    with pytest.raises(UnsupportedModelError, match=match):
        open_with(tmp_path, **keys)


def test_what_changes_nothing_is_accepted(tmp_path):
    model = open_with(
        tmp_path,
        attention__causal=True,
        rope__scaling__original_context_length=32,
        rope__scaling__finetuned=False,
        rope__scaling__attn_factor=1.0,
        rope__dimension_count=16,
        tensor_data_layout="Meta AI original pth",
        expert_count=0,
        general={"general.description": "anything", "quantize.imatrix.file": "x.dat"},
    )
    assert model.config == open_with(tmp_path).config and model.config.rotary_scaling is None


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "phi3"])
def test_a_window_that_llama_cpp_does_not_compute_is_left_out_and_noted(kind, tmp_path):
    model = open_with(tmp_path, kind, attention__sliding_window=8)
    assert model.config == open_with(tmp_path, kind).config and not any(model.config.windows)
    (note,) = model.notes
    assert f"{kind}.attention.sliding_window is 8: llama.cpp computes no windows" in note
    for size in (0, 64):  # the model reads 64 tokens
        assert open_with(tmp_path, kind, attention__sliding_window=size).notes == ()


def test_rotary_keys_are_as_llama_cpp_reads_them(tmp_path):
    linear = RotaryScaling("linear", 4.0)

    def read(**keys):
        return open_with(tmp_path, **keys).config

    assert read(rope__scaling__factor=4.0).rotary_scaling == linear
    assert read(rope__scale_linear=4.0).rotary_scaling == linear
    both = read(rope__scaling__factor=4.0, rope__scale_linear=2.0)
    assert both.rotary_scaling == linear
    none = read(rope__scaling__factor=4.0, rope__scaling__type="none")
    assert none.rotary_scaling is None and none.rotary_base == 10_000
    assert read(rope__scaling__factor=0.0).rotary_scaling is None
    gemma = {"kind": "gemma3", "attention__sliding_window": 8, "rope__freq_base": 1e6}
    assert read(**gemma).rotary_base_in_windows == 10_000
    assert read(**gemma, rope__freq_base_swa=2e4).rotary_base_in_windows == 2e4
    whole = read(kind="gemma3")  # no window: every layer sees everything, with the one base
    assert not any(whole.windows) and whole.rotary_base == 10_000
    assert read(kind="gemma2").windows[0] == 4096
    assert read(attention__head_count_kv=None).kv_heads == 2
    assert read(attention__head_count_kv=None, attention__sliding_window=8).kv_heads == 2


def test_how_a_file_wants_answers_drawn_is_named():
    sampling = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.name": "x"}
    notes = metadata.notes("llama", sampling)
    assert notes == tuple(f"{name} is {sampling[name]}: not applied" for name in list(sampling)[:2])


def test_stretched_frequencies_beside_a_factor_are_refused(tmp_path):
    stretching = {"rope_freqs.weight": np.ones(8, np.float32)}
    both = {"tensors": gguf_file.matrices() | stretching, "rope__scaling__factor": 4.0}
    with pytest.raises(UnsupportedModelError, match=r"both rope_freqs.weight and a factor"):
        open_with(tmp_path, **both)
    tensors = gguf_file.matrices("qwen3") | stretching
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs.weight is no parameter"):
        open_with(tmp_path, "qwen3", tensors=tensors)  # llama.cpp reads none there


@pytest.mark.parametrize(
    ("words", "general"),
    [
        ({"pre": ["gpt-2"]}, {}),
        ({"tokens": 3}, {}),
        ({"tokens": [1, 2]}, {}),
        ({"token_type": 1.5}, {}),
        ({"merges": 0}, {}),  # as if there were none
        ({"eos_token_id": True}, {}),  # as if it were 1
        ({"eot_token_id": [0]}, {}),
        ({"add_bos_token": "false"}, {}),  # as if it were true
        ({}, {"split.count": "2"}),
    ],
)
def test_keys_of_another_type_are_named(words, general, tmp_path):
    path = tmp_path / "m.gguf"
    gguf_file.write(path, words=gguf_file.vocabulary() | words, general=general)
    (key,) = [*words, *general]
    with pytest.raises(UnsupportedModelError, match=rf"m\.gguf: (tokenizer\.ggml\.)?{key} "):
        files.open_file(path).files()


def test_big_endian_files_are_told(tmp_path):
    path = tmp_path / "m.gguf"
    gguf_file.write(path)
    content = path.read_bytes()
    path.write_bytes(content[:4] + content[7:3:-1] + content[8:])
    with pytest.raises(UnsupportedModelError, match="is big-endian.*gguf-convert-endian"):
        files.open_file(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    tensors = gguf_file.matrices()
    tensors["blk.0.ffn_up.weight"][3, 4] = value
    model = open_with(tmp_path, tensors=tensors)
    match = "1 of 1,024 numbers of blk.0.ffn_up.weight are not finite"
    with pytest.raises(UnsupportedModelError, match=match):
        importing.import_model(model, tmp_path / "run")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


@pytest.mark.heavy
@pytest.mark.parametrize(
    "keys",
    [
        {"rope__scaling__factor": 4.0},
        {"rope__scale_linear": 4.0},
        {"rope__scaling__factor": 4.0, "rope__scaling__type": "none"},
        {"kind": "gemma3", "attention__sliding_window": 4, "rope__freq_base_swa": 5.0},
        {"attention__sliding_window": 3},
        {"kind": "qwen2", "attention__sliding_window": 3},
        {"kind": "qwen3", "attention__sliding_window": 3},
        {"kind": "phi3", "attention__sliding_window": 3},
        {"kind": "gemma2", "attention__sliding_window": 3, "attn_logit_softcapping": 2.0},
    ],
)
def test_llama_cpp_computes_the_same_from_these_keys(keys, tmp_path):
    model = open_with(tmp_path, **keys)
    ids = np.random.default_rng(0).integers(1, 257, 8).astype(np.int32)
    ours = jax.nn.log_softmax(our_logits(model, ids[None])[0])
    theirs = llama_cpp(tmp_path / "x.gguf", ids, 258)
    assert np.isfinite(theirs).all()
    # llama.cpp looks GELU up in a table of float16
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-3)


def test_a_template_that_is_none_is_refused_before_anything_is_written(tmp_path):
    model = open_with(tmp_path, general={"tokenizer.chat_template": "{% for %}"})
    with pytest.raises(UnsupportedModelError, match="the chat template is not as such"):
        importing.load_tokenizer(model)


def test_ends_of_turns_end_what_is_generated(tmp_path):
    words = gguf_file.vocabulary(eot_token_id=5, eom_token_id=6, padding_token_id=7)
    model = open_with(tmp_path, words=words)
    content = json.loads(model.files()["config.json"])
    assert content["eos_token_id"] == [0, 5, 6] and content["pad_token_id"] == 7
    tokens = [*gguf_file.TOKENS[:-1], "<end_of_turn>"]  # which Gemma's files do not name
    words = gguf_file.vocabulary(tokens, token_type=[3] + [1] * (len(tokens) - 2) + [3])
    metadata = {f"tokenizer.ggml.{name}": value for name, value in words.items()}
    assert gguf_tokenizer.token_ids(metadata)["eos_token_id"] == [0, len(tokens) - 1]
    tokenizer = importing.load_tokenizer(model)
    assert tokenizer.encode(gguf_file.TOKENS[5] + gguf_file.TOKENS[6]) == [5, 6]
