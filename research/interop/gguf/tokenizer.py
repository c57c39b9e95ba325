"""The tokenizer inside a GGUF file, as the `tokenizers` library reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gguf
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from research.interop.fields import UnsupportedModelError
from research.interop.gguf import sentencepiece

_SPECIAL = (gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN)
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(digits: str) -> Any:
    """Llama 3's and Qwen's way to cut text, which differ in how many digits stay together."""
    pattern = Regex(_CONTRACTIONS + _WORDS + digits + _REST)
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), bytes_only])


def _pre_tokenizer(kind: str, where: str) -> Any:
    """The pre-tokenizer that GGUF names, which cuts text before merging."""
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    match kind:
        case "default" | "gpt-2":
            return plain
        case "smollm":
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
        case "llama-bpe":
            return _split(r"|\p{N}{1,3}")
        case "qwen2":
            return _split(r"|\p{N}")
    raise UnsupportedModelError(
        f"{where}: a tokenizer that cuts text as {kind!r}; Graft knows default, gpt-2, smollm, "
        "llama-bpe and qwen2"
    )


def kind_of(content: Mapping[str, Any]) -> str:
    """GGUF's name for how a `tokenizer.json` cuts text.

    Raises:
      UnsupportedModelError: it is no byte-level BPE, or one that cuts text in another way.
    """
    model = content["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise UnsupportedModelError("GGUF: the tokenizer is no byte-level BPE")
    for kind in ("gpt-2", "smollm", "llama-bpe", "qwen2"):
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = _pre_tokenizer(kind, "")
        if _plain(json.loads(backend.to_str())["pre_tokenizer"]) == _plain(
            content["pre_tokenizer"]
        ):
            return kind
    raise UnsupportedModelError("GGUF: llama.cpp has no name for how this tokenizer cuts text")


def _plain(content: Any) -> Any:
    """Without what does not change the cuts."""
    if isinstance(content, dict):
        return {name: _plain(part) for name, part in content.items() if name != "trim_offsets"}
    return [_plain(part) for part in content] if isinstance(content, list) else content


def files(metadata: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """`tokenizer.json` and `tokenizer_config.json`, chat template included.

    Raises:
      UnsupportedModelError: no tokenizer, or one that Graft does not rebuild exactly.
    """

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}", default)

    tokens, kinds = get("tokens"), get("token_type")
    if not tokens:
        raise UnsupportedModelError(f"{where} has no tokenizer")
    if get("model") not in ("gpt2", "llama"):
        raise UnsupportedModelError(
            f"{where}: a tokenizer of kind {get('model')!r}; Graft rebuilds gpt2 (byte-level BPE) "
            "and llama (SentencePiece's BPE)"
        )
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise UnsupportedModelError(f"{where}: two tokens are the same text")
    if get("model") == "gpt2":
        backend = _byte_level(vocabulary, get("merges") or (), get("pre", "default"), where)
    else:
        backend = sentencepiece.build(
            vocabulary,
            get("scores") or (),
            kinds or (),
            get("unknown_token_id", 0),
            get("add_space_prefix", True),
            where,
        )
    special_tokens, user_tokens = [], []
    for text, kind in zip(tokens, kinds or (), strict=False):
        if kind in _SPECIAL:
            special_tokens.append(AddedToken(text, special=True, normalized=False))
        elif kind == gguf.TokenType.USER_DEFINED:
            user_tokens.append(AddedToken(text, special=False, normalized=False))
    backend.add_special_tokens(special_tokens)
    backend.add_tokens(user_tokens)

    def token(role: str) -> str | None:
        number = get(f"{role}_token_id")
        return tokens[number] if number is not None and 0 <= number < len(tokens) else None

    begin = token("bos")
    if begin is not None and get("add_bos_token", False):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B",
            special_tokens=[(begin, vocabulary[begin])],
        )  # fmt: skip
    names = {"bos_token": begin, "eos_token": token("eos"), "pad_token": token("padding")}
    names["unk_token"] = token("unknown")
    settings: dict[str, Any] = {role: name for role, name in names.items() if name is not None}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = metadata["tokenizer.chat_template"]
    return {
        "tokenizer.json": backend.to_str().encode(),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
    }


def _byte_level(
    vocabulary: Mapping[str, int], merges: Sequence[str], kind: str, where: str
) -> tokenizers.Tokenizer:
    """Byte-level BPE, as GPT-2 has it."""
    try:
        pairs: list[Any] = [tuple(merge.split(" ", 1)) for merge in merges]
        model = models.BPE(vocab=dict(vocabulary), merges=pairs, ignore_merges=kind == "llama-bpe")
    except Exception as error:  # the library raises bare Exception
        raise UnsupportedModelError(f"{where}: broken merges: {error}") from None
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = _pre_tokenizer(kind, where)
    backend.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        backend.normalizer = normalizers.NFC()
    return backend
