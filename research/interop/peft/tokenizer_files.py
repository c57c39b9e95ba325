"""An adapter's own tokenizer and chat template, where its folder has them: they go before the
base's, because the adapter was tuned on texts that were written with them."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from research.checkpoints.runs import Run
from research.interop import generation_config
from research.interop.fields import UnsupportedModelError, refuse_malformed
from research.interop.huggingface import read_json, read_text, sidecar_paths
from research.interop.importing import TOKENIZER, check_sidecar_files, read_tokenizer
from research.text import chat_template
from research.text.tokenizer import Tokenizer

# which go with a tokenizer's config, and so not the base's with the adapter's
_LISTS = (chat_template.TOKEN_NAMES, chat_template.ADDED)
_TEMPLATES = (chat_template.TEMPLATE, chat_template.TOOLS)


def _is_named(file: str) -> bool:
    return bool(chat_template.find_named({file: b""}))


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """What goes with an adapter: the base's, but for what its folder has.

    Attributes:
      files: sidecar files.
      notes: in what they differ from the base's.
    """

    tokenizer: Tokenizer
    files: Mapping[str, bytes]
    notes: tuple[str, ...] = ()


def read(path: Path, base: Run) -> TokenizerFiles:
    """The tokenizer and the template in an adapter's folder.

    Raises:
      UnsupportedModelError: what cannot be read, or a tokenizer with more tokens than the base.
    """
    own = {name: read_text(file).encode() for name, file in sidecar_paths(path).items()}
    own.pop(generation_config.NAME, None)
    tokenizer, notes = _tokenizer(path, own, base), list[str]()
    if generation_config.read_notes(path, base.model.vocabulary, read_json):
        notes.append(f"{generation_config.NAME}: not read, nor by PEFT; answers end as the base's")
    if tokenizer is not base.tokenizer:
        known = set(base.tokenizer.tokens())
        added = sorted(set(tokenizer.tokens()) - known)
        names = f", with {len(added)} tokens more ({', '.join(added[:4])})" if added else ""
        notes += [
            f"its tokenizer is not the base's{names}: the adapter's is used",
            *tokenizer.notes,
        ]
    files = base.sidecar_files | own
    if chat_template.SETTINGS in own:
        files = {name: text for name, text in files.items() if name in own or name not in _LISTS}
    files.pop(TOKENIZER, None)
    if own:
        check_sidecar_files(own, str(path))
    with refuse_malformed(f"{path}: the chat template"):
        templates = chat_template.find_template(own), chat_template.find_tool_template(own)
    if templates[0] is not None:
        if templates != base.tokenizer.templates:
            notes.append("its chat template is not the base's: the adapter's is used")
        files = {name: text for name, text in files.items() if name in own or not _is_named(name)}
    else:
        templates = base.tokenizer.templates
    for name, template in zip(_TEMPLATES, templates, strict=True):
        if template is not None:
            files[name] = template.encode()
    if templates[1] is None and chat_template.find_tool_template(files) is not None:
        files[chat_template.TOOLS] = files[chat_template.TEMPLATE]  # not the base's
    tokens = base.tokenizer.template_tokens
    if chat_template.SETTINGS in own or chat_template.TOKEN_NAMES in own:
        tokens = chat_template.find_tokens(files | own, tokenizer.named_tokens)
    if tokens != tokenizer.template_tokens:
        tokenizer = copy.copy(tokenizer)  # which may be the base's
        tokenizer.template_tokens = tokens
    return TokenizerFiles(tokenizer, files, tuple(notes))


def _tokenizer(path: Path, own: Mapping[str, bytes], base: Run) -> Tokenizer:
    """The adapter's tokenizer; the base's own where it is the same."""
    if TOKENIZER not in own:
        _check_without(path, own, base.tokenizer)
    settings = {name: text for name, text in base.sidecar_files.items() if name not in _LISTS}
    settings |= {name: own[name] for name in _LISTS if name in own}
    names = {
        name: token
        for name, token in base.tokenizer.role_tokens.items()
        if token in base.tokenizer.named_tokens
    }
    with refuse_malformed(f"{path}: {chat_template.SETTINGS}"):
        stated = json.loads(own.get(chat_template.SETTINGS, b"{}"))
        stated = {name: value for name, value in stated.items() if value is not None}
    settings[chat_template.SETTINGS] = json.dumps(names | stated).encode()
    settings[TOKENIZER] = own.get(TOKENIZER) or base.tokenizer.to_json().encode()
    tokenizer = read_tokenizer(settings, f"{path}: {TOKENIZER}")
    roles = ("begin", "end", "pad")
    is_same = all(tokenizer.roles[role] == base.tokenizer.roles[role] for role in roles)
    if is_same and _content(tokenizer) == _content(base.tokenizer):
        return base.tokenizer
    return tokenizer


def check_size(path: Path, base: Run) -> None:
    """Refuses tokens for which the base has no rows, by whichever file names them. Before all else
    of an adapter: weights and roles that do not fit are so for this reason.

    Raises:
      UnsupportedModelError: naming them, the sizes and what to do.
    """
    numbers: dict[str, int] = {}
    with refuse_malformed(f"{path}: the tokenizer"):
        if (path / TOKENIZER).is_file():
            backend = tokenizers.Tokenizer.from_str(read_text(path / TOKENIZER))
            numbers |= backend.get_vocab(with_added_tokens=True)
        if (path / chat_template.ADDED).is_file():
            numbers |= read_json(path / chat_template.ADDED)
        if (path / chat_template.SETTINGS).is_file():
            listed = read_json(path / chat_template.SETTINGS).get("added_tokens_decoder") or {}
            numbers |= {token["content"]: int(number) for number, token in listed.items()}
        surplus = {name for name, number in numbers.items() if number >= base.model.vocabulary}
    if surplus:
        names = sorted(surplus, key=lambda name: numbers[name])
        size, more = max(numbers.values()) + 1, ", ..." if len(names) > 4 else ""
        raise UnsupportedModelError(
            f"{path}: the adapter's tokenizer has {size:,} tokens, the base rows for "
            f"{base.model.vocabulary:,}; without one are {', '.join(names[:4])}{more}. The base "
            "was resized for it: resize it in transformers too "
            f"(model.resize_token_embeddings({size})), save that, and import it as the base"
        )


def _content(tokenizer: Tokenizer) -> Any:
    return json.loads(tokenizer.to_json())


def _check_without(path: Path, own: Mapping[str, bytes], tokenizer: Tokenizer) -> None:
    """Refuses an adapter that says something of tokens that only a tokenizer's file can tell."""
    for name in ("tokenizer.model", "vocab.json"):
        if (path / name).is_file():
            raise UnsupportedModelError(
                f"{path} has {name} and no {TOKENIZER}, which alone Graft reads: write it with "
                f"AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER), or take {name} "
                "out where the tokenizer is the base's"
            )
    added = read_json(path / chat_template.ADDED) if (path / chat_template.ADDED).is_file() else {}
    known = tokenizer.tokens()
    for name, number in added.items():
        if known.get(name) != number:
            raise UnsupportedModelError(
                f"{path} names a token {name!r} ({number}), which the base's tokenizer "
                f"has not, and has no {TOKENIZER} of its own"
            )
    with refuse_malformed(f"{path}: {chat_template.SETTINGS}"):
        tokens = chat_template.find_tokens(own)
    for role, name in tokens.items():
        if role in tokenizer.role_tokens and name not in known:
            raise UnsupportedModelError(
                f"{path}: {chat_template.SETTINGS} has {name!r} as {role}, which the base's "
                f"tokenizer ({tokenizer.vocabulary_size:,} tokens) has not, and there is no "
                f"{TOKENIZER}: write the adapter's own with AutoTokenizer.from_pretrained(FOLDER)"
                ".save_pretrained(FOLDER)"
            )
