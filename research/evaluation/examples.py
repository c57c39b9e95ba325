"""Answers to read: a few of those that failed, and of those on which two models differ.

Which are shown is drawn by a fixed seed, and how many there are is said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from research.evaluation.results import Answer, TaskResult
from research.reports import page
from research.reports.markup import render
from research.runtime.terminal import printable

# Answers that are shown of a kind, and characters of a text.
_MAX_CARDS = 8
_CHARACTERS = 4000
_SEED = 0


def failures(result: TaskResult) -> list[Markup]:
    """Unreadable, cut and wrong answers; one that is several of these stands under the first."""
    answers, metric = result.answers, next(iter(result.metrics), None)
    numbers = range(len(answers))
    kinds = [
        ("Nothing could be read", [n for n in numbers if answers[n].unreadable], len(answers)),
        ("Cut at their longest", [n for n in numbers if answers[n].is_cut], len(answers)),
    ]
    if metric is not None:
        having = [number for number in numbers if metric in answers[number].scores]
        scores = np.asarray([answers[number].scores[metric] for number in having])
        is_share = np.isin(scores, (0, 1)).all()
        edge = 0.0 if is_share else float(np.quantile(scores, 0.25, method="lower"))
        title = f"The lowest quarter by {metric}, up to {edge:.3g}"
        worst = [having[place] for place in np.flatnonzero(scores <= edge).tolist()]
        kinds.append((f"Wrong by {metric}" if is_share else title, worst, len(having)))
    parts: list[Markup] = []
    above: set[int] = set()
    for title, members, total in kinds:
        rest = [number for number in members if number not in above]
        cards = [answers[number] for number in rest]
        parts += _cards(title, cards, total, _card, len(members) - len(rest))
        above |= set(members)
    return parts


def differing(name: str, result: TaskResult, other_name: str, other: TaskResult) -> Markup:
    """Questions of which one of two models has the better answer."""
    metric = next(iter(result.metrics), "")
    others = {answer.digest: answer for answer in other.answers}
    pairs = [
        (answer, others[answer.digest]) for answer in result.answers if answer.digest in others
    ]
    pairs = [pair for pair in pairs if all(metric in each.scores for each in pair)]
    parts: list[Markup] = []
    for title, sign in (("This run is better", 1), (f"{other_name} is better", -1)):
        better = [
            (one, two) for one, two in pairs if sign * (one.scores[metric] - two.scores[metric]) > 0
        ]
        parts += _cards(
            f"{title} by {metric}", better, len(pairs), lambda pair: _pair_card(other_name, *pair)
        )
    if not parts:
        parts = [Markup("<p>Both have the same {} everywhere.</p>").format(metric)]
    return page.section(f"{name}: where the two differ", *parts)


def _cards(
    title: str,
    members: Sequence[Any],
    total: int,
    card: Callable[[Any], dict[str, Any]],
    above: int = 0,
) -> list[Markup]:
    """Some of the members, drawn by a fixed seed, in their order; nothing where there are none.

    Args:
      above: how many more there are, which stand further up.
    """
    if not (members or above):
        return []
    rows = range(len(members))
    if len(members) > _MAX_CARDS:
        order = np.random.default_rng(_SEED).permutation(len(members))
        rows = sorted(order[:_MAX_CARDS].tolist())  # type: ignore[assignment]
    caption = f"{len(members) + above:,} of {total:,}"
    caption += f", {above:,} of which stand above" if above else ""
    whose = "the others" if above else "them"
    caption += f"; {len(rows)} of {whose}, drawn at random." if len(rows) < len(members) else "."
    cards = [card(members[row]) for row in rows]
    return [render("evaluation/answers.html", title=title, caption=caption, answers=cards)]


def _card(answer: Answer) -> dict[str, Any]:
    parts = []
    if answer.reference is not None:
        parts.append(("right", _bounded(answer.reference)))
    parts.append(("answer", _bounded(answer.answer) or "(empty)"))
    if answer.failure:
        parts.append(("its constraint failed", _bounded(answer.failure)))
    if answer.unreadable:
        parts.append(("unreadable", _bounded(answer.unreadable)))
    if answer.remark:
        parts.append(("remark", _bounded(answer.remark)))
    if answer.passages is not None:
        parts.append(("passages", _bounded("\n".join(map(str, answer.passages))) or "(none)"))
    return {"about": _about(answer), "question": _bounded(answer.question), "parts": parts}


def _pair_card(other_name: str, answer: Answer, other: Answer) -> dict[str, Any]:
    card = _card(answer)
    parts = [("this run" if name == "answer" else name, text) for name, text in card["parts"]]
    card["parts"] = [*parts, (printable(other_name), _bounded(other.answer) or "(empty)")]
    return card


def _about(answer: Answer) -> str:
    """Tokens and scores in a line."""
    new_tokens = f" + {answer.new_tokens:,}" if answer.new_tokens else ""
    tokens = f"{answer.prompt_tokens:,}{new_tokens} tokens"
    scores = [f"{name} {value:.3g}" for name, value in list(answer.scores.items())[:4]]
    sure = [] if answer.confidence is None else [f"sure {answer.confidence:.2f}"]
    return ", ".join([tokens, *scores, *sure, *(["cut"] if answer.is_cut else [])])


def _bounded(text: str) -> str:
    """A text, or its beginning, with controls spelt out: some show text in another order."""
    text = printable(text)
    if len(text) <= _CHARACTERS:
        return text
    return f"{text[:_CHARACTERS]}… ({len(text):,} characters)"
