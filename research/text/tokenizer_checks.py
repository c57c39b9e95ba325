"""A `tokenizer.json` that says two things: of each, the library takes one without a word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from research.runtime import unique_json


def check(text: str, ids: Mapping[str, int], where: str) -> None:
    """Refuses a file that contradicts itself.

    Args:
      text: a file that the library opens.
      ids: the id of every token as it is opened.

    Raises:
      ValueError: a key or a token twice, two tokens of one id, or an added token that does not
        have the id that the file gives it.
    """
    try:
        content = unique_json.parse(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    model = content.get("model") or {}
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, Mapping):
        _check_ids(vocabulary, where)
    else:  # Unigram: pairs of a token and its score, by id
        _check_tokens((pair[0] for pair in vocabulary), where)
    added: dict[str, Any] = {}
    for token in content.get("added_tokens") or []:
        name, number = token["content"], token["id"]
        if ids.get(name) != number:
            raise ValueError(
                f"{where}: added_tokens gives {name!r} the id {number}, and it is opened as "
                f"{ids.get(name, 'none')}: that id is another token's, the vocabulary gives it "
                "another one, or ids before it are missing. Make both say the same"
            )
        if added.setdefault(name, token) != token:
            raise ValueError(
                f"{where}: added_tokens lists {name!r} twice, in two ways: keep one of them"
            )


def _check_ids(vocabulary: Mapping[str, int], where: str) -> None:
    names: dict[int, str] = {}
    for name, number in vocabulary.items():
        if names.setdefault(number, name) != name:
            raise ValueError(
                f"{where}: the vocabulary gives {names[number]!r} and {name!r} the same id, "
                f"{number}: give each its own"
            )


def _check_tokens(tokens: Iterable[str], where: str) -> None:
    numbers: dict[str, int] = {}
    for number, name in enumerate(tokens):
        if numbers.setdefault(name, number) != number:
            raise ValueError(
                f"{where}: the vocabulary has {name!r} twice, as {numbers[name]} and {number}: "
                "give each token one id"
            )
