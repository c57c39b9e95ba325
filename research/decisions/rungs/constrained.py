"""What an answer must be: through a constraint, or a check that has the model try again."""

import dataclasses
from collections.abc import Iterator

from research.decisions.problem import Problem
from research.decisions.rungs.base import LeftOut, Place, Rung
from research.decisions.ways import Way
from research.evaluation.generation_task import GenerationTask
from research.evaluation.scorers.json_schema import JsonSchema
from research.evaluation.workflows.check import Check
from research.evaluation.workflows.draft import Draft
from research.generation.constraints import ConstraintConfig
from research.generation.constraints.choice import ChoiceConstraint
from research.generation.constraints.json_schema import SchemaConstraint

RETRIES = 2
# Answers of the training rows among which a model may choose, where each has several rows.
_MAX_CHOICES = 60


def ways(place: Place) -> list[Way]:
    best, problem = place.incumbent, place.problem
    if not isinstance(problem.task, GenerationTask):
        raise LeftOut("answers are chosen among options: they cannot be anything else")
    result = [
        dataclasses.replace(
            best,
            name=f"{best.name}, {name}",
            rung=RUNG.name,
            constraint=constraint,
        )
        for name, constraint in _constraints(problem, problem.task)
    ]
    for scorer in problem.task.scorers:
        if isinstance(scorer, JsonSchema) and scorer.schema is not None:
            check = Check(scorer=scorer, retries=RETRIES)
            name = f"{best.name}, check with {RETRIES} retries"
            workflow = (Draft(), check)
            result.append(dataclasses.replace(best, name=name, rung=RUNG.name, workflow=workflow))
    if not result:
        raise LeftOut("the task has neither a schema nor few answers that an answer could be of")
    return result


def _constraints(problem: Problem, task: GenerationTask) -> Iterator[tuple[str, ConstraintConfig]]:
    for scorer in task.scorers:
        if isinstance(scorer, JsonSchema) and scorer.schema is not None:
            yield "its schema", SchemaConstraint(schema=scorer.schema)
    answers = [shot.completion for shot in problem.examples]
    known = sorted(set(answers))
    if known and "" not in known and 2 * len(known) <= len(answers) and len(known) <= _MAX_CHOICES:
        yield "one of the known answers", ChoiceConstraint(tuple(known))


RUNG = Rung("constraints", ways)
