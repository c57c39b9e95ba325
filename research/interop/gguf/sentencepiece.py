"""SentencePiece's BPE (Llama 2, Gemma) in the terms of the `tokenizers` library, and back.

GGUF gives every piece a score; of all neighbours whose union is a piece, the best score merges
first. The library has ranked merges instead. A piece's every split into two pieces gets the
piece's rank, so both merge in the same order.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import gguf
from tokenizers import Tokenizer, decoders, models, normalizers

from research.interop.fields import UnsupportedModelError

SPACE = "\u2581"  # stands for a space inside pieces
Kind = gguf.TokenType


def build(
    vocabulary: Mapping[str, int],
    scores: Sequence[float],
    kinds: Sequence[int],
    unknown: int,
    prefix: bool,
    where: str,
) -> Tokenizer:
    """A tokenizer from GGUF's lists.

    Args:
      vocabulary: token -> id, in the order of ids.
      unknown: the id of the token for what no piece covers.
      prefix: whether a space goes before each text, as Llama 2 has it.

    Raises:
      UnsupportedModelError: lists of different lengths, or missing bytes.
    """
    tokens = list(vocabulary)
    if not len(tokens) == len(scores) == len(kinds):
        raise UnsupportedModelError(
            f"{where}: {len(tokens)} tokens with {len(scores)} scores and {len(kinds)} kinds"
        )
    if not 0 <= unknown < len(tokens):
        raise UnsupportedModelError(
            f"{where}: no token {unknown}, which should stand for the unknown"
        )
    missing = [name for name in map(byte_token, range(256)) if name not in vocabulary]
    if missing:
        raise UnsupportedModelError(f"{where}: no token {missing[0]} for a byte")
    rank = {
        token: score
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
        if kind == Kind.NORMAL
    }
    merges = [(-rank[left + right], len(left), left, right) for left, right in _splits(rank)]
    merges.sort(key=lambda merge: merge[:2])
    backend = Tokenizer(
        models.BPE(
            vocab=dict(vocabulary),
            merges=[(left, right) for _, _, left, right in merges],
            unk_token=tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces: Any = normalizers.Replace(" ", SPACE)
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        spaces = normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    backend.normalizer = spaces
    backend.decoder = decoders.Sequence(steps)
    return backend


def byte_token(byte: int) -> str:
    return f"<0x{byte:02X}>"


def pieces(
    content: Mapping[str, Any], where: str
) -> tuple[dict[int, tuple[str, float, Kind]], bool]:
    """Piece, score and kind of each id for GGUF, and whether a space goes before a text.

    Args:
      content: a `tokenizer.json`.

    Raises:
      UnsupportedModelError: it is another kind of tokenizer, or treats spaces in another way.
    """
    model, prefix = content["model"], _has_prefix(content, where)
    if model["type"] != "BPE" or model.get("unk_token") not in model["vocab"]:
        raise UnsupportedModelError(
            f"{where}: a tokenizer without a token for what it does not know"
        )
    missing = [name for name in map(byte_token, range(256)) if name not in model["vocab"]]
    if missing:
        raise UnsupportedModelError(f"{where}: the tokenizer has no token {missing[0]} for a byte")
    added_tokens = {token["content"]: token for token in content["added_tokens"]}
    vocabulary = model["vocab"] | {name: token["id"] for name, token in added_tokens.items()}
    rank: dict[str, int] = {}
    for merge in model["merges"]:
        piece = "".join(merge if isinstance(merge, list) else merge.split(" ", 1))
        rank.setdefault(piece, len(rank))
    single_bytes = set(map(byte_token, range(256)))
    result = {}
    for piece, number in vocabulary.items():
        if piece == model.get("unk_token"):
            kind = Kind.UNKNOWN
        elif piece in added_tokens:
            kind = Kind.CONTROL if added_tokens[piece]["special"] else Kind.USER_DEFINED
        else:
            kind = Kind.BYTE if piece in single_bytes else Kind.NORMAL
        # what never comes of a merge stands after all that do
        result[number] = piece, -float(rank.get(piece, len(rank))), kind
    merges = {tuple(m if isinstance(m, list) else m.split(" ", 1)) for m in model["merges"]}
    normal = {piece for piece, _, kind in result.values() if kind == Kind.NORMAL}
    others = sorted("".join(pair) for pair in _splits(normal) if pair not in merges)
    if others:
        warnings.warn(
            f"{where}: llama.cpp also merges {others[0]!r} and {len(others) - 1} more from parts "
            "of which this tokenizer does not, and may read some texts as other tokens",
            stacklevel=2,
        )
    return result, prefix


def _splits(pieces: Collection[str]) -> Iterator[tuple[str, str]]:
    """Every way in which a piece is two others."""
    for piece in pieces:
        for at in range(1, min(len(piece), _LONGEST)):
            if piece[:at] in pieces and piece[at:] in pieces:
                yield piece[:at], piece[at:]


# letters of a piece that are looked at: SentencePiece's own limit is 16
_LONGEST = 256


def _has_prefix(content: Mapping[str, Any], where: str) -> bool:
    """Whether a space goes before each text, which files say in one of two ways."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    normalizer, splitter = content["normalizer"], content["pre_tokenizer"]
    # which finds no spaces once they are replaced
    at_spaces = {"type": "Split", "pattern": {"String": " "}}
    is_idle = splitter is None or (
        normalizer and {key: splitter.get(key) for key in at_spaces} == at_spaces
    )
    if is_idle and normalizer == replace:
        return False
    if is_idle and normalizer == {"type": "Sequence", "normalizers": [prepend, replace]}:
        return True
    is_metaspace = splitter and splitter["type"] == "Metaspace" and not splitter.get("split")
    if normalizer is None and is_metaspace:
        prefix = splitter.get("prepend_scheme", "always") != "never"
        if prefix:
            warnings.warn(
                f"{where}: llama.cpp puts a space before a text that begins with one too, and "
                "after each special token; this tokenizer does not",
                stacklevel=2,
            )
        return bool(prefix)
    raise UnsupportedModelError(f"{where}: llama.cpp has no name for how this tokenizer cuts text")
