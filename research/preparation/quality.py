"""The quality rules of Gopher (Rae et al. 2021, arXiv:2112.11446, appendix A.1.1 and table A1).

Where the paper leaves a choice: words are what white space parts; shares of characters count the
characters of words, lines or paragraphs themselves, not the space between them; and a line,
paragraph or n-gram is repeated if it stood before, so the first of several alike is not counted.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from research.preparation import documents, stages
from research.preparation.config import Quality
from research.preparation.documents import RowRange
from research.preparation.ngrams import ngram_hashes, word_hashes
from research.preparation.stages import Stage

_BULLETS = ("•", "‣", "▪", "●", "◦", "-", "*", "–")
_ELLIPSES = ("...", "…")
_BLANK_LINE = re.compile(r"\n\s*\n")


def rule_names(config: Quality) -> tuple[str, ...]:
    """Names of all rules, in the order in which they are tried."""
    return (
        "words",
        "mean_word",
        "hash_signs",
        "ellipses",
        "bullet_lines",
        "ellipsis_lines",
        "letter_words",
        "stop_words",
        "repeated_lines",
        "repeated_paragraphs",
        "repeated_line_characters",
        "repeated_paragraph_characters",
        *(f"common_{size}gram" for size, _ in config.max_common_ngram),
        *(f"repeated_{size}grams" for size, _ in config.max_repeated_ngrams),
    )


def broken_rules(text: str, config: Quality) -> Iterator[str]:
    """Names of the rules that the text breaks, in their order; the rest is not computed."""
    words = text.split()
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    yield from _broken_form_rules(text, words, lines, config)
    yield from _broken_repetition_rules(text, words, lines, config)


def _broken_form_rules(
    text: str, words: Sequence[str], lines: Sequence[str], config: Quality
) -> Iterator[str]:
    """Rules of what words and lines look like."""
    count = max(1, len(words))
    if not config.min_words <= len(words) <= config.max_words:
        yield "words"
    characters = sum(map(len, words))
    if not config.shortest_mean_word <= characters / count <= config.longest_mean_word:
        yield "mean_word"
    if text.count("#") / count > config.max_symbols:
        yield "hash_signs"
    if sum(map(text.count, _ELLIPSES)) / count > config.max_symbols:
        yield "ellipses"
    if _share([line.startswith(_BULLETS) for line in lines]) > config.max_bullet_lines:
        yield "bullet_lines"
    if _share([line.endswith(_ELLIPSES) for line in lines]) > config.max_ellipsis_lines:
        yield "ellipsis_lines"
    if sum(any(map(str.isalpha, word)) for word in words) / count < config.min_letter_words:
        yield "letter_words"
    present_stop_words = set(config.stop_words).intersection(word.lower() for word in words)
    if len(present_stop_words) < config.min_stop_words:
        yield "stop_words"


def _broken_repetition_rules(
    text: str, words: list[str], lines: Sequence[str], config: Quality
) -> Iterator[str]:
    """Rules of what stands more than once: lines, paragraphs, word n-grams."""
    paragraphs = [part for part in map(str.strip, _BLANK_LINE.split(text)) if part]
    line_share, line_characters = _repeated_shares(lines)
    paragraph_share, paragraph_characters = _repeated_shares(paragraphs)
    if line_share > config.max_repeated_lines:
        yield "repeated_lines"
    if paragraph_share > config.max_repeated_paragraphs:
        yield "repeated_paragraphs"
    if line_characters > config.max_repeated_line_characters:
        yield "repeated_line_characters"
    if paragraph_characters > config.max_repeated_paragraph_characters:
        yield "repeated_paragraph_characters"
    hashes = word_hashes(words)
    sizes = np.fromiter(map(len, words), np.int64, len(words))
    characters = int(sizes.sum())
    for size, max_share in config.max_common_ngram:
        if _common_ngram(hashes, sizes, size) > max_share * characters:
            yield f"common_{size}gram"
    for size, max_share in config.max_repeated_ngrams:
        if _repeated_ngrams(hashes, sizes, size) > max_share * characters:
            yield f"repeated_{size}grams"


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / max(1, len(flags))


def _repeated_shares(parts: Sequence[str]) -> tuple[float, float]:
    """Share of the parts that stood before: in number, and in characters."""
    earlier_parts: set[str] = set()
    number = size = 0
    for part in parts:
        if part in earlier_parts:
            number += 1
            size += len(part)
        earlier_parts.add(part)
    return number / max(1, len(parts)), size / max(1, sum(map(len, parts)))


def _common_ngram(hashes: np.ndarray, sizes: np.ndarray, size: int) -> int:
    """Characters that the most common n-gram covers; 0 if none stands twice."""
    grams = ngram_hashes(hashes, size)
    if not len(grams):
        return 0
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    if counts.max() < 2:
        return 0
    running = np.concatenate([[0], np.cumsum(sizes)])
    lengths = running[first + size] - running[first]
    # Of several that are as common, the longest.
    return int((counts * lengths)[counts == counts.max()].max())


def _repeated_ngrams(hashes: np.ndarray, sizes: np.ndarray, size: int) -> int:
    """Characters of words within an n-gram that stood before, each counted once."""
    grams = ngram_hashes(hashes, size)
    _, first = np.unique(grams, return_index=True)
    is_repeat = np.ones(len(grams), bool)
    is_repeat[first] = False
    is_covered = np.zeros(len(hashes), bool)
    for offset in range(size):
        is_covered[offset : offset + len(grams)] |= is_repeat
    return int(sizes[is_covered].sum())


def mark_low_quality(stage: Stage, config: Quality, row_range: RowRange) -> None:
    """Writes for each document of a range -1, or the number of the first rule that it breaks."""
    marks = np.full(len(row_range), -1, np.int64)
    if row_range.source_split.kind not in config.exempt:
        numbers = {name: number for number, name in enumerate(rule_names(config))}
        for place, text in documents.texts(row_range):
            broken_rule = next(broken_rules(text, config), None)
            if broken_rule is not None:
                marks[place] = numbers[broken_rule]
    stages.save(stage.file(row_range.number), marks)
