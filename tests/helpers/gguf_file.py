"""Tiny GGUF files, written with the `gguf` package alone, key by key."""

import json

import gguf
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

MERGES = [("Ġ", "a")]  # llama.cpp wants one
TOKENS = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa"]
WIDTH, ROWS = 32, len(TOKENS)


def shape(kind="llama", heads=2, width=WIDTH, **more):
    """The keys of a shape, without the architecture's name before them."""
    epsilon = "layer_norm_epsilon" if kind == "gpt2" else "layer_norm_rms_epsilon"
    return {
        "context_length": 64,
        "embedding_length": width,
        "block_count": 1,
        "feed_forward_length": width,
        "attention.head_count": heads,
        "attention.head_count_kv": heads,
        f"attention.{epsilon}": 1e-5,
    } | more


def vocabulary(tokens=TOKENS, merges=MERGES, pre="gpt-2", **more):
    """The keys of a byte-level BPE, without `tokenizer.ggml` before them; None leaves one out."""
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": list(tokens),
        "token_type": [3] + [1] * (len(tokens) - 1),
        "merges": [" ".join(merge) for merge in merges],
        "bos_token_id": 0,
        "eos_token_id": 0,
    } | more


def matrices(kind="llama", rows=ROWS, width=WIDTH):
    """The tensors of one layer; nothing at its trivial start."""
    random = np.random.default_rng(0)
    names = ["token_embd", *(f"blk.0.attn_{part}" for part in ("q", "k", "v", "output"))]
    names += [f"blk.0.ffn_{part}" for part in ("gate", "up", "down")]
    tensors = {f"{name}.weight": random.normal(size=(width, width)) for name in names}
    tensors["token_embd.weight"] = random.normal(size=(rows, width))
    norms = ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"]
    norms += ["blk.0.post_attention_norm", "blk.0.post_ffw_norm"] * kind.startswith("gemma")
    head_norms = ["blk.0.attn_q_norm", "blk.0.attn_k_norm"] * (kind in ("gemma3", "qwen3"))
    tensors |= {f"{name}.weight": random.normal(size=width) for name in norms}
    tensors |= {f"{name}.weight": random.normal(size=width // 2) for name in head_norms}
    if kind == "qwen2":
        tensors |= {f"blk.0.attn_{part}.bias": random.normal(size=width) for part in "qkv"}
    if kind == "phi3":  # which joins what llama has apart
        parts = [tensors.pop(f"blk.0.attn_{part}.weight") for part in "qkv"]
        tensors["blk.0.attn_qkv.weight"] = np.concatenate(parts)
        parts = [tensors.pop("blk.0.ffn_gate.weight"), tensors["blk.0.ffn_up.weight"]]
        tensors["blk.0.ffn_up.weight"] = np.concatenate(parts)
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def write(path, kind="llama", keys=None, words=None, tensors=None, general=None, **split):
    """Writes a file.

    Args:
      kind: its architecture.
      keys: those of the architecture; None: `shape`.
      words: those of the tokenizer; None: `vocabulary`.
      tensors: arrays, or raw blocks with the name of their type; None: `matrices`.
      general: other keys, whole.
      split: `split_max_tensors` of the writer.
    """
    writer = gguf.GGUFWriter(path, kind, **split)
    keys = shape(kind) if keys is None else keys
    words = vocabulary() if words is None else words
    whole = {f"{kind}.{name}": value for name, value in keys.items()}
    whole |= {f"tokenizer.ggml.{name}": value for name, value in words.items()} | (general or {})
    for name, value in whole.items():
        if value is not None:
            _add(writer, name, value)
    for name, value in (matrices(kind) if tensors is None else tensors).items():
        raw, dtype = value if isinstance(value, tuple) else (value, None)
        writer.add_tensor(name, raw, raw_dtype=dtype and gguf.GGMLQuantizationType[dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer, name, value):
    if isinstance(value, list):
        if value:
            writer.add_array(name, value)
    else:
        kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        kinds.get(type(value), writer.add_string)(name, value)


def random_blocks(kind, rows, columns, seed=0):
    """Raw blocks [rows, bytes] of a quantised type, whose numbers are finite."""
    dtype = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[dtype]
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
    while True:
        with np.errstate(all="ignore"):
            values = gguf.quants.dequantize(raw, dtype)
        is_bad = ~(np.abs(values) < 1e4).all(axis=1)
        if not is_bad.any():
            return raw.reshape(rows, -1)
        raw[is_bad] = random.integers(0, 256, (is_bad.sum(), size), dtype=np.uint8)


def train_uncut(texts, size):
    """Tokens and merges of a BPE that was trained on whole texts: how one is cut shows in ids."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=TOKENS[1:257],
        special_tokens=TOKENS[:1],
        min_frequency=1,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    model = json.loads(backend.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), model["merges"]
