"""Gopher's rules: each against a document that breaks it and no other."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.preparation.config import Quality
from research.preparation.quality import broken_rules, rule_names
from tests.preparation import corpus

GOOD = corpus.prose(0)
WORDS = GOOD.split()
LINES = [corpus.prose(seed, 12) for seed in range(40)]
QUADS = [corpus.prose(seed, 4) for seed in range(100, 126)]


def _runs(size: int, times: int, count: int) -> str:
    """Words of four letters: one run of `size` of them stands `times` times, all others once.

    So the run's share of the characters is its share of the words.
    """
    letters = itertools.product("bcdfg", "aeiou", "klmnprst", "aeiou")
    unique = ["that", "have", *map("".join, itertools.islice(letters, count))]
    run, others = unique[2 : 2 + size], [*unique[:2], *unique[2 + size :]]
    others = others[: count - size * times]
    each = len(others) // times
    parts = [[*others[i * each : (i + 1) * each], *run] for i in range(times)]
    return " ".join(itertools.chain(*parts, others[times * each :]))


CASES = {
    "words": " ".join(WORDS[:49]),
    "mean_word": " ".join(f"{word}{'long' * 3}" if i % 3 else word for i, word in enumerate(WORDS)),
    "hash_signs": GOOD + " #" * 14,
    "ellipses": GOOD.replace(" ", " ...", 14),
    "bullet_lines": "\n".join(f"- {line}" for line in LINES[:8]),
    "ellipsis_lines": "\n".join(f"{line}..." if i % 2 else line for i, line in enumerate(LINES)),
    "letter_words": " ".join(f"{i:04d}" if i % 4 == 0 else w for i, w in enumerate(WORDS)),
    "stop_words": " ".join(word for word in corpus.prose(0, 200).split() if len(word) > 4),
    # Short lines, which weigh little in characters.
    "repeated_lines": "\n".join(
        [
            *LINES[:12],
            *["so", "it", "goes", "so", "it", "goes", "so", "it", "goes", "so", "it", "goes"],
        ]
    ),
    # Many other lines in few paragraphs.
    "repeated_paragraphs": "\n\n".join(["\n".join(LINES[i::6]) for i in range(6)] + ["so"] * 6),
    # A good quarter of the lines, none of five words.
    "repeated_line_characters": "\n".join([*QUADS, *QUADS[0:20:2]]),
    # Half of the paragraph's characters are the white space before its second line.
    "repeated_paragraph_characters": "\n\n".join(
        [*LINES[:12], f"so\n{' ' * 600}it goes", "and", f"so\n{' ' * 600}it goes"]
    ),
    "common_2gram": _runs(2, 12, 100),
    "common_3gram": _runs(3, 9, 140),
    "common_4gram": _runs(4, 6, 140),
    "repeated_5grams": _runs(5, 6, 155),
    "repeated_6grams": _runs(6, 3, 83),
    "repeated_7grams": _runs(7, 2, 52),
    "repeated_8grams": _runs(8, 2, 64),
    "repeated_9grams": _runs(9, 2, 78),
    "repeated_10grams": _runs(10, 2, 95),
}


def test_every_rule_has_a_document():
    assert tuple(CASES) == rule_names(Quality())
    assert not list(broken_rules(GOOD, Quality()))


@pytest.mark.parametrize("name", CASES)
def test_a_document_that_breaks_one_rule_breaks_no_other(name):
    assert list(broken_rules(CASES[name], Quality())) == [name]


def test_thresholds_are_the_configs():
    lax = dataclasses.replace(Quality(), min_words=49)
    assert not list(broken_rules(CASES["words"], lax))
    only = dataclasses.replace(Quality(), max_repeated_ngrams=((3, 0.01),))
    assert "repeated_3grams" in rule_names(only) and "repeated_5grams" not in rule_names(only)
    assert list(broken_rules(CASES["repeated_10grams"], only)) == ["repeated_3grams"]


@given(st.text())
def test_any_text_can_be_judged(text):
    assert set(broken_rules(text, Quality())) <= set(CASES)
