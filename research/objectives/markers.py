"""Texts that mark places in an example: special tokens of the tokenizer, or text like any other.

A tokenizer that lacks a marker's special token spells it, in as many tokens as it takes. What no
text holds does well there, such as "\\x01", which is one token in a byte-level vocabulary.
"""

from collections.abc import Sequence

import numpy as np

from research.text.token_table import TokenTable
from research.text.tokenizer import Tokenizer

# Tokens that are searched at one time.
_CHUNK = 2**22


def encode(markers: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Token ids of every marker.

    Raises:
        ValueError: a marker has no token, or another one starts with it.
    """
    ids = [tokenizer.encode(marker, special=True) for marker in markers]
    for marker, token_ids in zip(markers, ids, strict=True):
        if not token_ids:
            raise ValueError(
                f"The marker {marker!r} has no token: name a special token of the tokenizer, or "
                "a text that the data never holds."
            )
    order = sorted(range(len(ids)), key=ids.__getitem__)
    for one, other in zip(order, order[1:], strict=False):
        if ids[other][: len(ids[one])] == ids[one]:
            raise ValueError(
                f"The markers {markers[one]!r} and {markers[other]!r} cannot be told apart: the "
                f"tokens of the second start with those of the first, {ids[one]}."
            )
    return [np.asarray(token_ids, np.int32) for token_ids in ids]


def is_special(ids: np.ndarray, tokenizer: Tokenizer) -> bool:
    """Whether a marker is one special token, which no text can hold."""
    return len(ids) == 1 and int(ids[0]) in tokenizer.special_ids


def check_absent(
    markers: Sequence[str],
    ids: Sequence[np.ndarray],
    table: TokenTable,
    field: str,
    tokenizer: Tokenizer,
) -> None:
    """Raises ValueError if a text holds one of the markers, which names its row.

    Reads all tokens if a marker is no special token.
    """
    plain = [i for i in range(len(ids)) if not is_special(ids[i], tokenizer)]
    if not plain:
        return
    values = table[field].values
    opens = np.zeros(tokenizer.vocabulary_size, bool)
    opens[[ids[i][0] for i in plain]] = True
    for chunk in range(0, len(values), _CHUNK):
        places = np.flatnonzero(opens[values[chunk : chunk + _CHUNK]]) + chunk
        for i in plain:
            starts = places
            for offset, token in enumerate(ids[i]):
                starts = starts[starts + offset < len(values)]
                starts = starts[values[starts + offset] == token]
            if len(starts):
                row = int(np.searchsorted(table[field].offsets, starts[0], side="right")) - 1
                raise ValueError(
                    f"{table.name}, row {row}: the text holds the marker {markers[i]!r}, which "
                    "could not be told from those that the objective sets. Configure a marker "
                    "that the data never holds, or remove this row."
                )
