"""The tokenizer inside a GGUF file, as the `tokenizers` library reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gguf
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from research.interop.fields import UnsupportedModelError
from research.interop.gguf import pretokenizers, sentencepiece

_SPECIAL = (gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN)
_NAMES = ("bos", "eos", "eot", "eom", "unknown", "padding")
# which tokens have a role in a file that does not say it, to llama.cpp
_DEFAULT_IDS = {"llama": {"bos": 1, "eos": 2, "unknown": 0}}
# of infilling, classifiers and other front ends: no text is read otherwise for them
_WITHOUT_EFFECT = {
    *("token_type_count", "seperator_token_id", "mask_token_id", "fim_pre_token_id"),
    *("fim_suf_token_id", "fim_mid_token_id", "fim_pad_token_id", "fim_rep_token_id"),
    *("cls_token_id", "separator_token_id"),
    *("fim_sep_token_id", "prefix_token_id", "suffix_token_id", "middle_token_id"),
}
_LISTS = {"tokens": str, "token_type": int, "scores": float, "merges": str}
_SINGLE = {
    **{"model": str, "pre": str, "add_bos_token": bool, "add_space_prefix": bool},
    **{f"{name}_token_id": int for name in _NAMES},
}
_KEYS = {*_LISTS, *_SINGLE}
# special tokens that end what is generated wherever they are, to llama.cpp; files often do not say
_ENDS = (
    *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>"),
    *("<|end_of_text|>", "<EOT>", "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>"),
)
# those that must be off, if they are there
_OFF = {
    "add_eos_token": "every text would end in the end token, prompts too",
    "add_sep_token": "every text would end in a separator",
    "remove_extra_whitespaces": "spaces would be lost, as in T5",
    "precompiled_charsmap": "letters would be replaced, as in T5",
    "suppress_tokens": "tokens that may never be generated",
}


def check_types(metadata: Mapping[str, Any], where: str) -> None:
    """Raises UnsupportedModelError for a key of another type than llama.cpp reads there."""
    for key, kind in (_LISTS | _SINGLE).items():
        value = metadata.get(f"tokenizer.ggml.{key}")
        is_list = key in _LISTS
        items = value if is_list and isinstance(value, list) else [value]
        is_right = isinstance(value, list) == is_list and {*map(type, items)} <= {kind}
        if value is not None and not is_right:
            expected = f"{'a list of ' * is_list}{kind.__name__}"
            raise UnsupportedModelError(
                f"{where}: tokenizer.ggml.{key} must be {expected}, not {value!r:.60}"
            )


def token_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens of a `config.json`; those that end a turn end what is generated too."""
    ids = {name: _token_id(metadata, name) for name in _NAMES}
    ends = [ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None]
    lists = [metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type")]
    tokens, kinds = (one if isinstance(one, list) else [] for one in lists)
    for number, (text, kind) in enumerate(zip(tokens, kinds, strict=False)):
        if kind == gguf.TokenType.CONTROL and text in _ENDS:
            ends.append(number)
    ends = list(dict.fromkeys(ends))
    return {
        "bos_token_id": ids["bos"],
        "eos_token_id": ends if len(ends) > 1 else ids["eos"],
        "pad_token_id": ids["padding"],
    }


def _token_id(metadata: Mapping[str, Any], role: str) -> int | None:
    defaults = _DEFAULT_IDS.get(str(metadata.get("tokenizer.ggml.model")), {})
    return metadata.get(f"tokenizer.ggml.{role}_token_id", defaults.get(role))


def files(
    metadata: Mapping[str, Any], where: str, pre_tokenizer: str | None = None
) -> dict[str, bytes]:
    """`tokenizer.json` and `tokenizer_config.json`, chat template included.

    Args:
      pre_tokenizer: llama.cpp's name for how text is cut, for a file that does not say it.

    Raises:
      UnsupportedModelError: no tokenizer, or one that Graft does not rebuild exactly.
    """

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}", default)

    tokens = get("tokens")
    _check(metadata, where)
    kinds = get("token_type") or [gguf.TokenType.NORMAL] * len(tokens)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise UnsupportedModelError(f"{where}: two tokens are the same text")
    if len(kinds) != len(tokens):
        raise UnsupportedModelError(f"{where}: {len(tokens)} tokens with {len(kinds)} kinds")
    if get("model") == "gpt2":
        kind = _pre_tokenizer(get("pre"), pre_tokenizer, where)
        opens = pretokenizers.find(kind, where).opens
        merges = list(dict.fromkeys(get("merges") or ()))  # of one twice, its first place counts
        backend = _byte_level(vocabulary, merges, kind, where)
    else:
        opens = True
        backend = sentencepiece.build(
            vocabulary,
            get("scores") or (),
            kinds,
            get("unknown_token_id", 0),
            get("add_space_prefix", True),
            where,
        )
    names: dict[str, str] = {}
    for role in _NAMES:
        number = _token_id(metadata, role)
        if number is None:
            continue
        if not isinstance(number, int) or not 0 <= number < len(tokens):
            raise UnsupportedModelError(
                f"{where}: tokenizer.ggml.{role}_token_id is {number!r}; there are {len(tokens)}"
            )
        names[role] = tokens[number]
    _add_tokens(backend, dict(zip(tokens, kinds, strict=True)), names, metadata)
    begin = names.get("bos")
    if begin is not None and get("add_bos_token", opens):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B",
            special_tokens=[(begin, vocabulary[begin])],
        )  # fmt: skip
    roles = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    # transformers would make special what is not: a plain token that pads is in config.json
    settings: dict[str, Any] = {
        key: names[role] for key, role in roles.items() if names.get(role) in added
    }
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if template := _chat_template(metadata):
        settings["chat_template"] = template
        for name in ("pad_token", "unk_token"):  # which llama.cpp gives to no template
            if name in str(template):
                settings.pop(name, None)
    return {
        "tokenizer.json": backend.to_str().encode(),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
    }


def _check(metadata: Mapping[str, Any], where: str) -> None:
    """Refuses keys of a tokenizer that are not known, or say what Graft does not rebuild."""
    model = metadata.get("tokenizer.ggml.model")
    if not metadata.get("tokenizer.ggml.tokens"):
        raise UnsupportedModelError(f"{where} has no tokenizer")
    if model not in ("gpt2", "llama"):
        raise UnsupportedModelError(
            f"{where}: a tokenizer of kind {model!r}; Graft rebuilds gpt2 (byte-level BPE) "
            "and llama (SentencePiece's BPE)"
        )
    for name, value in metadata.items():
        key = name.removeprefix("tokenizer.ggml.")
        if not name.startswith("tokenizer.") or name.startswith("tokenizer.chat_template"):
            continue
        if key in _KEYS or key in _WITHOUT_EFFECT or name == "tokenizer.huggingface.json":
            continue
        if key not in _OFF:
            raise UnsupportedModelError(
                f"{where}: {name} is no key that Graft knows; texts could be read otherwise for it"
            )
        if value:
            raise UnsupportedModelError(f"{where}: {name} is {value!r:.40}: {_OFF[key]}")
    if model == "gpt2" and metadata.get("tokenizer.ggml.add_space_prefix"):
        raise UnsupportedModelError(
            f"{where}: tokenizer.ggml.add_space_prefix is true, which llama.cpp does not do in a "
            "byte-level BPE"
        )


def _pre_tokenizer(kind: str | None, setting: str | None, where: str) -> Any:
    """The name in the file, or the setting's where there is none."""
    if kind and setting and kind != setting:
        raise UnsupportedModelError(f"{where} cuts text as {kind!r}, not as {setting!r}")
    return kind or setting


def _add_tokens(
    backend: tokenizers.Tokenizer,
    kinds: Mapping[str, int],
    names: Mapping[str, str],
    metadata: Mapping[str, Any],
) -> None:
    """Adds the tokens that are found in a text as they are, before it is cut."""
    # to llama.cpp these are special whatever their kind
    ends = {names[role] for role in ("bos", "eos", "eot", "eom") if role in names}
    # Phi-3's take the spaces behind them; llama.cpp knows it by the name too
    is_phi = any(name in str(metadata.get("general.name")).lower() for name in ("phi-3", "phi3"))
    special_tokens, user_tokens = [], []
    for text, kind in kinds.items():
        strips = is_phi and text not in ("<unk>", "<s>", "<|endoftext|>")
        if kind in _SPECIAL or text in ends:
            special_tokens.append(AddedToken(text, special=True, normalized=False, rstrip=strips))
        elif kind == gguf.TokenType.USER_DEFINED:
            user_tokens.append(AddedToken(text, special=False, normalized=False, rstrip=strips))
    backend.add_special_tokens(special_tokens)
    backend.add_tokens(user_tokens)


def _chat_template(metadata: Mapping[str, Any]) -> Any:
    """The template as `tokenizer_config.json` has it: a text, or several by name."""
    prefix = "tokenizer.chat_template"
    default = metadata.get(prefix)
    others = {k.removeprefix(f"{prefix}."): v for k, v in metadata.items() if f"{prefix}." in k}
    if not others:
        return default
    templates = ({"default": default} if default else {}) | others
    return [{"name": name, "template": template} for name, template in templates.items()]


def _byte_level(
    vocabulary: Mapping[str, int], merges: Sequence[str], kind: str, where: str
) -> tokenizers.Tokenizer:
    """Byte-level BPE, as GPT-2 has it."""
    known = pretokenizers.find(kind, where)
    try:
        pairs: list[Any] = [tuple(merge.split(" ", 1)) for merge in merges]
        model = models.BPE(dict(vocabulary), pairs, ignore_merges=known.ignore_merges)
    except Exception as error:  # the library raises bare Exception
        raise UnsupportedModelError(f"{where}: broken merges: {error}") from None
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = known.build()
    backend.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        backend.normalizer = normalizers.NFC()
    return backend
