"""An adapter's own tokenizer and chat template, where its folder has them: they go before the
base's, because the adapter was tuned on texts that were written with them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.checkpoints.runs import Run
from research.interop.fields import UnsupportedModelError, refuse_malformed
from research.interop.huggingface import SIDECAR_FILES, read_json, read_text
from research.interop.importing import TOKENIZER, check_sidecar_files, read_tokenizer
from research.text import chat_template
from research.text.tokenizer import Tokenizer

_ADDED = "added_tokens.json"


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
    own = {
        name: read_text(path / name).encode() for name in SIDECAR_FILES if (path / name).is_file()
    }
    own.pop("generation_config.json", None)
    tokenizer, notes = _tokenizer(path, own, base), []
    if tokenizer is not base.tokenizer:
        known = set(base.tokenizer.tokens())
        added = sorted(set(tokenizer.tokens()) - known)
        names = f", with {len(added)} tokens more ({', '.join(added[:4])})" if added else ""
        notes.append(f"its tokenizer is not the base's{names}: the adapter's is used")
    files = base.sidecar_files | own
    files.pop(TOKENIZER, None)
    if own:
        check_sidecar_files(own, str(path))
    with refuse_malformed(f"{path}: the chat template"):
        template = chat_template.find_template(own) if own else None
    if template is not None and template != base.tokenizer.chat_template:
        notes.append("its chat template is not the base's: the adapter's is used")
    template = base.tokenizer.chat_template if template is None else template
    if template is not None:
        files[chat_template.TEMPLATE] = template.encode()
    return TokenizerFiles(tokenizer, files, tuple(notes))


def _tokenizer(path: Path, own: Mapping[str, bytes], base: Run) -> Tokenizer:
    """The adapter's tokenizer; the base's own where it is the same."""
    if TOKENIZER not in own:
        _check_without(path, base.tokenizer)
    settings = dict(base.sidecar_files)
    names = {f"{theirs}_token": base.tokenizer.roles[role] for theirs, role in _ROLES.items()}
    with refuse_malformed(f"{path}: {chat_template.SETTINGS}"):
        stated = json.loads(own.get(chat_template.SETTINGS, b"{}"))
        stated = {name: value for name, value in stated.items() if value is not None}
    settings[chat_template.SETTINGS] = json.dumps(names | stated).encode()
    settings[TOKENIZER] = own.get(TOKENIZER) or base.tokenizer.to_json().encode()
    tokenizer = read_tokenizer(settings, f"{path}: {TOKENIZER}")
    if tokenizer.vocabulary_size > base.model.vocabulary:
        raise UnsupportedModelError(
            f"{path}: {TOKENIZER} has {tokenizer.vocabulary_size:,} tokens, the base "
            f"{base.model.vocabulary:,}: the base was resized for it. Resize it in transformers "
            "too (model.resize_token_embeddings), and import that as the base"
        )
    roles = ("begin", "end", "pad")
    is_same = all(tokenizer.roles[role] == base.tokenizer.roles[role] for role in roles)
    if is_same and _content(tokenizer) == _content(base.tokenizer):
        return base.tokenizer
    return tokenizer


_ROLES = {"bos": "begin", "eos": "end", "pad": "pad"}


def _content(tokenizer: Tokenizer) -> Any:
    return json.loads(tokenizer.to_json())


def _check_without(path: Path, tokenizer: Tokenizer) -> None:
    """Refuses an adapter that says something of tokens that only a tokenizer's file can tell."""
    for name in ("tokenizer.model", "vocab.json"):
        if (path / name).is_file():
            raise UnsupportedModelError(
                f"{path} has {name} and no {TOKENIZER}, which alone Graft reads: write it with "
                f"AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER), or take {name} "
                "out where the tokenizer is the base's"
            )
    added = read_json(path / _ADDED) if (path / _ADDED).is_file() else {}
    known = tokenizer.tokens()
    for name, number in added.items():
        if known.get(name) != number:
            raise UnsupportedModelError(
                f"{path} names a token {name!r} ({number}), which the base's tokenizer "
                f"has not, and has no {TOKENIZER} of its own"
            )
