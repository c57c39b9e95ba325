"""The tokenizer inside a GGUF file, as the `tokenizers` library reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from research.interop.fields import UnsupportedModel

# GGUF's kinds of tokens
_CONTROL, _USER_DEFINED = 3, 4
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(digits: str) -> Any:
    """Llama 3's and Qwen's way to cut text, which differ in how many digits stay together."""
    pattern = Regex(_CONTRACTIONS + _WORDS + digits + _REST)
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), bytes_only])


def _cut(kind: str, where: str) -> Any:
    """How text is cut before merging, by GGUF's name for it."""
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
    raise UnsupportedModel(
        f"{where}: a tokenizer that cuts text as {kind!r}; Graft knows default, gpt-2, smollm, "
        "llama-bpe and qwen2"
    )


def kind_of(content: Mapping[str, Any]) -> str:
    """GGUF's name for how a `tokenizer.json` cuts text.

    Raises:
      UnsupportedModel: it is no byte-level BPE, or one that cuts text in another way.
    """
    model = content["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise UnsupportedModel("GGUF: the tokenizer is no byte-level BPE")
    for kind in ("gpt-2", "smollm", "llama-bpe", "qwen2"):
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = _cut(kind, "")
        if _plain(json.loads(made.to_str())["pre_tokenizer"]) == _plain(content["pre_tokenizer"]):
            return kind
    raise UnsupportedModel("GGUF: llama.cpp has no name for how this tokenizer cuts text")


def _plain(content: Any) -> Any:
    """Without what does not change the cuts."""
    if isinstance(content, dict):
        return {name: _plain(part) for name, part in content.items() if name != "trim_offsets"}
    return [_plain(part) for part in content] if isinstance(content, list) else content


def files(metadata: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """`tokenizer.json` and `tokenizer_config.json`, chat template included.

    Raises:
      UnsupportedModel: no tokenizer, or one that Graft does not rebuild exactly.
    """
    get = lambda key, default=None: metadata.get(f"tokenizer.ggml.{key}", default)  # noqa: E731
    tokens, kinds = get("tokens"), get("token_type")
    if not tokens:
        raise UnsupportedModel(f"{where} has no tokenizer")
    if get("model") != "gpt2":
        raise UnsupportedModel(
            f"{where}: a tokenizer of kind {get('model')!r}; Graft rebuilds byte-level BPE only"
        )
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise UnsupportedModel(f"{where}: two tokens are the same text")
    cut = get("pre", "default")
    try:
        merges = [tuple(merge.split(" ", 1)) for merge in get("merges") or ()]
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=cut == "llama-bpe")
    except Exception as error:  # the library raises bare Exception
        raise UnsupportedModel(f"{where}: broken merges: {error}") from None
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = _cut(cut, where)
    backend.decoder = decoders.ByteLevel()
    if cut == "qwen2":
        backend.normalizer = normalizers.NFC()
    for number, kind in enumerate(kinds or ()):
        if kind in (_CONTROL, _USER_DEFINED):
            added = AddedToken(tokens[number], special=kind == _CONTROL, normalized=False)
            backend.add_special_tokens([added]) if kind == _CONTROL else backend.add_tokens([added])

    def token(role: str) -> str | None:
        number = get(f"{role}_token_id")
        return tokens[number] if number is not None and 0 <= number < len(tokens) else None

    begin = token("bos")
    if begin is not None and get("add_bos_token", False):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B",
            special_tokens=[(begin, vocabulary[begin])],
        )  # fmt: skip
    named = {"bos_token": begin, "eos_token": token("eos"), "pad_token": token("padding")}
    settings: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = metadata["tokenizer.chat_template"]
    return {
        "tokenizer.json": backend.to_str().encode(),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
    }
