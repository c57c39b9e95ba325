"""Exports runs as GGUF files for llama.cpp, in F32, F16 or BF16, tensor by tensor."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from research.adapters.merging import Merged
from research.checkpoints.runs import Run
from research.interop.exporting import stop_ids, whole_file
from research.interop.families import FAMILIES
from research.interop.family import Source, family_for_model, parameter_shapes, sources
from research.interop.fields import UnsupportedModelError
from research.interop.gguf import pretokenizers, sentencepiece
from research.interop.gguf.architectures import (
    FREQUENCIES,
    LARGEST,
    name_of_family,
    rotary_heads,
    tensor_names,
)
from research.interop.gguf.tensors import interleave_halves
from research.interop.huggingface import tensor_reader
from research.interop.tensor_files import cast, name_unwritten
from research.models import rotary
from research.models.config import ModelConfig
from research.text import chat_template
from research.text.tokenizer import Tokenizer

DTYPES = {
    "float32": (np.dtype(np.float32), gguf.GGMLQuantizationType.F32),
    "float16": (np.dtype(np.float16), gguf.GGMLQuantizationType.F16),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), gguf.GGMLQuantizationType.BF16),
}


def plan(run: Run) -> tuple[str, dict[str, Source]]:
    """llama.cpp's architecture for a run's model, and where each parameter goes.

    Raises:
      UnsupportedModelError: llama.cpp has no such architecture or tokenizer.
    """
    family, _ = family_for_model(run.model, FAMILIES, (run.origin or {}).get("family"))
    kind = name_of_family(family.kind)
    _check_fixed(kind, run.model)
    content = json.loads(run.tokenizer.to_json())
    if content["model"].get("byte_fallback"):
        sentencepiece.pieces(content, "GGUF")
    else:
        pretokenizers.kind_of(content)
    return kind, sources(tensor_names(family), parameter_shapes(run.model))


def export_gguf(
    run: Run,
    out: str | Path,
    dtype: str = "float32",
    on_tensor: Callable[[str], None] = lambda name: None,
) -> None:
    """Writes a run's model, adapters merged, with tokenizer and chat template.

    Vectors (norms, biases) stay float32, as llama.cpp wants them.

    Args:
      out: the file; it appears under its name when it is whole.
      dtype: of the matrices.
      on_tensor: called after each tensor with its name.

    Raises:
      FileExistsError: the file is there.
      UnsupportedModelError: llama.cpp has no such architecture or tokenizer.
    """
    read_parameter, config = Merged(run), run.model
    kind, places = plan(run)
    tensors = {source.name: source.shape for source in places.values()}
    read_tensor = tensor_reader(places, read_parameter)
    heads = rotary_heads(kind, config, places)
    offset = config.norm_offset
    with whole_file(out) as partial:
        writer = gguf.GGUFWriter(partial, kind)
        _describe(writer, kind, run)
        _tokenizer(writer, run)
        matrix, quantization = DTYPES[dtype]
        if kind == "llama" and config.rotary_scaling and config.rotary_scaling.kind == "llama3":
            plain = np.asarray(rotary.frequencies(config, None))
            stretching = plain / np.asarray(rotary.frequencies(config, config.rotary_scaling))
            writer.add_tensor(FREQUENCIES, stretching)
        for name, shape in tensors.items():
            is_vector = len(shape) == 1
            storage, raw_dtype = DTYPES["float32"] if is_vector else (matrix, quantization)
            size = int(np.prod(shape)) * storage.itemsize
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=raw_dtype)
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if FREQUENCIES in writer.tensors[0]:
            writer.write_tensor_data(stretching)
        for name, shape in tensors.items():
            value = read_tensor(name)
            if name in heads:  # the halves of every head, interleaved
                value = interleave_halves(value, heads[name])
            if offset and name.endswith("norm.weight"):
                value = value + np.float32(offset)
            storage = np.dtype(np.float32) if len(shape) == 1 else matrix
            value = cast(value, storage, name)
            with name_unwritten(name):
                writer.write_tensor_data(value.view(np.uint16) if dtype == "bfloat16" else value)
            del value  # before the next one is read
            on_tensor(name)
        writer.close()


_EVERY = ("query", "key", "value", "output", "gate", "up", "down")
# the biases that llama.cpp reads
_BIASES = {"llama": _EVERY, "qwen2": _EVERY[:3], "gpt2": _EVERY}


def _check_fixed(kind: str, config: ModelConfig) -> None:
    """Refuses what llama.cpp would compute in its own fixed way instead.

    Raises:
      UnsupportedModelError: windows, caps or a scale of scores that are not the architecture's.
    """
    if kind == "gemma2" and not (any(config.windows) and config.score_cap and config.logit_cap):
        raise UnsupportedModelError(
            "llama.cpp's gemma2 has windows and caps of scores and logits, and takes its own for "
            "those that a model has not"
        )
    if kind != "gemma2" and config.score_cap:
        raise UnsupportedModelError(f"llama.cpp's {kind} does not cap scores")
    cycle = {"gemma2": 2, "gemma3": 6}.get(kind, 1)
    windows = [config.window(layer) for layer in range(config.layers)]
    if kind == "phi3" and any(windows):
        raise UnsupportedModelError(
            f"llama.cpp's phi3 sees everything, not windows {config.windows}"
        )
    their_windows = [max(windows) * ((layer + 1) % cycle != 0) for layer in range(config.layers)]
    if windows != their_windows:
        raise UnsupportedModelError(f"llama.cpp's {kind} sees other windows than {config.windows}")
    if extra := set(config.biases) - set(_BIASES.get(kind, ())):
        raise UnsupportedModelError(f"llama.cpp's {kind} has no bias of {', '.join(sorted(extra))}")
    size = config.head_dim
    if kind in LARGEST and config.layers == LARGEST[kind]:
        size = config.width // config.heads
    if (config.score_size or config.head_dim) != size:
        raise UnsupportedModelError(
            f"llama.cpp's {kind} divides scores by the root of {size}, not of {config.score_size}"
        )


def _describe(writer: gguf.GGUFWriter, kind: str, run: Run) -> None:
    """Writes the shape under llama.cpp's keys."""
    config, scaling = run.model, run.model.rotary_scaling
    writer.add_name(str((run.origin or {}).get("source", "graft")))
    writer.add_context_length(run.context_length)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_vocab_size(config.vocabulary)
    if config.norm == "layer":
        writer.add_layer_norm_eps(config.norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(config.norm_epsilon)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rotary_base)
    if config.rotary_base_in_windows:
        writer.add_rope_freq_base_swa(config.rotary_base_in_windows)
    if scaling is not None and scaling.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)
    elif scaling is not None and kind != "llama":
        raise UnsupportedModelError(f"llama.cpp has no scaling {scaling.kind!r} for {kind}")
    if any(config.windows):
        writer.add_sliding_window(max(config.windows))
    if config.score_cap:
        writer.add_attn_logit_softcapping(config.score_cap)
    if config.logit_cap:
        writer.add_final_logit_softcapping(config.logit_cap)


def _tokenizer(writer: gguf.GGUFWriter, run: Run) -> None:
    """Writes a BPE of bytes, or SentencePiece's, with its special tokens and chat template."""
    tokenizer, rows = run.tokenizer, run.model.vocabulary
    content: dict[str, Any] = json.loads(tokenizer.to_json())
    model = content["model"]
    _warn_of_spaces(content["added_tokens"])
    tokens = [f"[PAD{number}]" for number in range(rows)]
    kinds = [gguf.TokenType.UNUSED] * rows
    if model.get("byte_fallback"):
        scores = [-1e9] * rows
        pieces, prefix = sentencepiece.pieces(content, "GGUF")
        for number, (token, score, piece) in pieces.items():
            tokens[number], scores[number], kinds[number] = token, score, piece
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(scores)
        writer.add_unk_token_id(model["vocab"][model["unk_token"]])
    else:
        prefix = False
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pretokenizers.kind_of(content))
        for token, number in model["vocab"].items():
            tokens[number], kinds[number] = token, gguf.TokenType.NORMAL
        for token in content["added_tokens"]:
            kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
            tokens[token["id"]], kinds[token["id"]] = token["content"], kind
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(tokenizer.begin_id)
    writer.add_eos_token_id(tokenizer.end_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    # imported configs may name tokens that the table does not have
    stops = [number for number in stop_ids(run)[1:] if number < rows]
    for add, number in zip((writer.add_eot_token_id, writer.add_eom_token_id), stops, strict=False):
        add(number)
    writer.add_add_bos_token(opens(run))
    writer.add_add_space_prefix(prefix)
    template = chat_template.find_template(run.sidecar_files)
    tool_template = chat_template.find_tool_template(run.sidecar_files)
    if template and tool_template is not None:
        texts = {"default": template, "tool_use": tool_template}
        writer.add_chat_template(
            [{"name": n, "template": _with_tokens(text, tokenizer)} for n, text in texts.items()]
        )
    elif template:
        writer.add_chat_template(_with_tokens(template, tokenizer))


def _with_tokens(template: str, tokenizer: Tokenizer) -> str:
    """A template that says itself which special tokens it sees, where llama.cpp would give it
    others: the begin and end tokens alone, and these to models without such names too."""
    tokens = tokenizer.template_tokens
    theirs = {"bos_token": tokenizer.roles["begin"], "eos_token": tokenizer.roles["end"]}
    names = chat_template.read_contents(template).names & set(tokens | theirs)
    lines = [
        "{%- set " + f"{name} = {json.dumps(tokens.get(name, ''), ensure_ascii=False)}" + " %}"
        for name in sorted(names)
        if tokens.get(name) != theirs.get(name)
    ]
    # what follows a block loses its first line end, what follows a text does not
    return "".join(lines) + "{{ '' }}" * bool(lines) + template


def opens(run: Run) -> bool:
    """Whether llama.cpp is to put the begin token before a text: where the tokenizer does, but for
    conversations that were tuned on without it. (One that the template writes it leaves out.)"""
    begin, tokens = run.tokenizer.roles["begin"], run.tokenizer.template_tokens
    objective = run.experiment.data.objective if run.experiment else None
    template = chat_template.find_template(run.sidecar_files)
    if not run.tokenizer.opening or objective is None or objective.kind != "chat" or not template:
        return bool(run.tokenizer.opening)
    question = [{"role": "user", "content": "?"}]
    return chat_template.render(template, question, tokens).startswith(begin)


def _warn_of_spaces(added_tokens: Sequence[Mapping[str, Any]]) -> None:
    """Says that tokens take spaces beside them, which llama.cpp knows of Phi-3's alone."""
    names = [t["content"] for t in added_tokens if t.get("lstrip") or t.get("rstrip")]
    if names:
        warnings.warn(
            f"GGUF: {names[0]!r} and {len(names) - 1} more take the spaces beside them; llama.cpp "
            "leaves those, and may read some texts as other tokens",
            stacklevel=2,
        )
