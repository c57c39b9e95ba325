"""Passages that give a test away: a question with its answer, or nearly the whole test record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from research.text.near_duplicates import nearest_similarity
from research.text.normalize import words_of

# Words by which passages are looked up that may hold a question.
_LOOK = 5


@dataclasses.dataclass(frozen=True)
class Leak:
    """A passage that gives a question away."""

    # number of the passage, and of the question
    passage: int
    question: int
    # what it is, for people
    reason: str


def find_leaks(
    contents: Sequence[str],
    questions: Sequence[str],
    answers: Sequence[Sequence[str]],
    threshold: float,
) -> list[Leak]:
    """The passages that give a question away, each with the first such question.

    Texts are compared by their words, without case and punctuation.

    Args:
      contents: [N] all that each passage says.
      questions: [Q] what is asked.
      answers: [Q] the right answers of each, where they are known.
      threshold: similarity from which a passage is a copy of a question with an answer.
    """
    leaks = {leak.passage: leak for leak in _find_contained(contents, questions, answers)}
    for leak in _find_copies(contents, questions, answers, threshold):
        leaks.setdefault(leak.passage, leak)
    return [leaks[passage] for passage in sorted(leaks)]


def _find_contained(
    contents: Sequence[str], questions: Sequence[str], answers: Sequence[Sequence[str]]
) -> list[Leak]:
    """Passages that have all words of a question in their order, and those of an answer."""
    padded_questions = [_padded(text) for text in questions]
    by_opening: dict[tuple[str, ...], list[int]] = {}
    for number, text in enumerate(questions):
        if words := words_of(text):
            by_opening.setdefault(tuple(words[:_LOOK]), []).append(number)
    sizes = sorted({len(opening) for opening in by_opening})
    padded_answers: Mapping[int, list[str]] = {
        number: [padded for text in each if (padded := _padded(text)).strip()]
        for number, each in enumerate(answers)
    }
    leaks = []
    for passage, content in enumerate(contents):
        words = words_of(content)
        openings = {
            tuple(words[i : i + size]) for size in sizes for i in range(len(words) - size + 1)
        }
        numbers = sorted(n for opening in openings for n in by_opening.get(opening, ()))
        padded = f" {' '.join(words)} "
        for number in numbers:
            if padded_questions[number] in padded:
                rest = padded.replace(padded_questions[number], " | ")
                if any(answer in rest for answer in padded_answers[number]):
                    leaks.append(Leak(passage, number, "holds a question with its answer"))
                    break
    return leaks


def _find_copies(
    contents: Sequence[str],
    questions: Sequence[str],
    answers: Sequence[Sequence[str]],
    threshold: float,
) -> list[Leak]:
    """Passages that are near duplicates of a question with one of its answers."""
    records = [
        (number, f"{question}\n{answer}")
        for number, question in enumerate(questions)
        for answer in answers[number] or ("",)
        if words_of(question)  # no words are a copy of no words
    ]
    similarity, nearest = nearest_similarity(contents, [record for _, record in records])
    return [
        Leak(int(row), records[at][0], f"is a copy of a test record ({similarity[row]:.0%})")
        for row, at in enumerate(nearest)
        if at >= 0 and similarity[row] >= threshold
    ]


def _padded(text: str) -> str:
    """Its words between spaces, so that no part of a word is found."""
    return f" {' '.join(words_of(text))} "
