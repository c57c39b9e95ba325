"""Takes questions through the steps of a workflow."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research.evaluation.passages import Prompt
from research.evaluation.results import StepUsage
from research.evaluation.workflows.base import Candidate, Step
from research.evaluation.workflows.draft import Draft
from research.generation.constraints import ConstraintConfig
from research.generation.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Saying:
    """What the model says when it is asked."""

    text: str
    # without thoughts
    plain_text: str
    # what it was asked
    prompt: Prompt
    new_tokens: int
    # whether it was stopped before its end
    is_cut: bool
    # why its constraint failed, which stopped it; empty: it did not
    failure: str = ""


# Candidates, a constraint and the most tokens of an answer (None: the task's) -> what is said.
Write = Callable[[Sequence[Candidate], ConstraintConfig | None, int | None], list[Saying]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a workflow came to."""

    # number of a question -> its answer
    answers: Mapping[int, Candidate]
    # number of a question -> all that the model read and wrote for it
    sayings: Mapping[int, Sequence[Saying]]
    # of each step
    usage: Sequence[StepUsage]


def check_workflow(steps: Sequence[Step], sampling: Sampling) -> None:
    """Raises ValueError for steps that make no sense one after the other."""
    if not isinstance(steps[0], Draft):
        raise ValueError('workflow: it begins with a draft, dict(kind="draft")')
    for number, step in enumerate(steps):
        if isinstance(step, Draft) and bool(step.instruction) != bool(number):
            raise ValueError(
                f"workflow[{number}]: a draft after the first one is told something first, its "
                "`instruction`, and the first is asked the question alone"
            )
    votes = [number for number, step in enumerate(steps) if step.candidate_count > 1]
    if len(votes) > 1:
        raise ValueError(f"workflow[{votes[1]}]: there is one answer left to vote on")
    if votes and sampling.temperature == 0:
        raise ValueError(
            f"workflow[{votes[0]}]: answers of the likeliest tokens are all the same: set "
            "`sampling.temperature` above 0, such as 0.8"
        )


def run_workflow(
    steps: Sequence[Step], records: Mapping[int, Mapping[str, Any]], write: Write
) -> Outcome:
    """Answers some questions.

    Args:
      steps: as `check_workflow` lets them pass.
      records: number of a question -> its record.
      write: has the model say something.
    """
    samples = max(step.candidate_count for step in steps)
    candidates = [Candidate(number, sample) for number in records for sample in range(samples)]
    sayings: dict[int, list[Saying]] = collections.defaultdict(list)
    usage: list[StepUsage] = []
    limits: tuple[ConstraintConfig | None, int | None] = (None, None)
    for step in steps:
        limits = limits if step.limits is None else step.limits
        constraint, max_tokens = limits
        own: list[Saying] = []

        def ask(
            members: Sequence[Candidate],
            constraint: ConstraintConfig | None = constraint,
            max_tokens: int | None = max_tokens,
            own: list[Saying] = own,
        ) -> list[Candidate]:
            new = write(members, constraint, max_tokens)
            own += new
            for candidate, saying in zip(members, new, strict=True):
                sayings[candidate.question].append(saying)
            return [_add(candidate, each) for candidate, each in zip(members, new, strict=True)]

        start = time.perf_counter()
        candidates = step.run(candidates, ask, records)
        usage.append(
            StepUsage(
                step=step.kind,
                answers=len(own),
                prompt_tokens=sum(len(saying.prompt.ids) for saying in own),
                new_tokens=sum(saying.new_tokens for saying in own),
                seconds=time.perf_counter() - start,
            )
        )
    answers = {each.question: each for each in candidates}
    return Outcome(answers, sayings, tuple(usage))


def _add(candidate: Candidate, saying: Saying) -> Candidate:
    return dataclasses.replace(
        candidate,
        text=saying.text,
        plain_text=saying.plain_text,
        is_cut=saying.is_cut,
        failure=saying.failure,
        attempts=candidate.attempts + 1,
    )
