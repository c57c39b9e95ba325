"""Worked examples in front of every question, the same for all: how many, and which."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from research.decisions.rungs.base import LeftOut, Place, Rung, prefix_of
from research.decisions.templates import Shot
from research.decisions.ways import Way

# How many examples, and which draw of them.
CHOICES = ((2, 0), (4, 0), (4, 1), (8, 0))


def draw(examples: Sequence[Shot], count: int, seed: int) -> tuple[Shot, ...]:
    """So many examples, of as many different answers as there are room and answers for."""
    order = np.random.default_rng(seed).permutation(len(examples))
    by_answer: dict[str, list[Shot]] = {}
    for place in order:
        by_answer.setdefault(examples[place].completion, []).append(examples[place])
    rounds = [
        group[turn]
        for turn in range(max(map(len, by_answer.values())))
        for group in by_answer.values()
        if turn < len(group)
    ]
    return tuple(rounds[:count])


def ways(place: Place) -> list[Way]:
    best, examples = place.incumbent, place.problem.examples
    if not examples:
        raise LeftOut("no labels to take examples from")
    prefix = prefix_of(place)
    return [
        dataclasses.replace(
            best,
            name=prefix + f"{count} examples" + (f", draw {seed + 1}" if seed else ""),
            rung=RUNG.name,
            shots=draw(examples, count, seed),
            build=dataclasses.replace(best.build, labels=count),
        )
        for count, seed in CHOICES
        if count <= len(examples)
    ]


RUNG = Rung("few-shot", ways)
