"""What is like the question, in front of it: labelled examples, or passages of documents."""

import dataclasses

from research.decisions.costs import BuildCost
from research.decisions.rungs.base import LeftOut, Place, Rung, prefix_of
from research.decisions.ways import Way
from research.retrieval.bm25 import Bm25

# How many of the nearest examples, and their tokens at most, each.
COUNTS = (4, 8)
EXAMPLE_TOKENS = 128


def ways(place: Place) -> list[Way]:
    best, problem = place.incumbent, place.problem
    result = []
    size = sum(len(shot.prompt.encode()) + len(shot.completion) for shot in problem.examples)
    build = BuildCost(labels=len(problem.examples), artifact_bytes=size)
    for count in COUNTS if problem.examples else ():
        nearest = Bm25(
            problem.example_source(),
            passages=count,
            max_tokens=count * EXAMPLE_TOKENS,
            passage_template=best.template.passage,
            query="question",
            contamination="leave_out",
        )
        name = f"{prefix_of(place)}{count} nearest examples"
        own = dataclasses.replace(best, name=name, rung=RUNG.name, shots=(), retrieval=nearest)
        result.append(dataclasses.replace(own, build=build))
    if place.passages is not None:
        passages = dataclasses.replace(place.passages, query="question")
        name = f"{prefix_of(place)}passages"
        result.append(dataclasses.replace(best, name=name, rung=RUNG.name, retrieval=passages))
    if not result:
        raise LeftOut("neither labels nor documents to look things up in")
    return result


RUNG = Rung("retrieval", ways)
