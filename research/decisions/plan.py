"""What a climb will take, from shapes: nothing is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research import methods
from research.checkpoints import runs
from research.decisions.decision import Settings
from research.decisions.problem import Problem
from research.decisions.rungs import PROMPTS, LeftOut, Rung
from research.decisions.rungs.base import Place
from research.decisions.rungs.tuned import Tuning
from research.decisions.templates import default_templates
from research.decisions.tuning import FEWEST_LABELS, Start, Tuner
from research.decisions.ways import Base, Way
from research.evaluation.generation_task import GenerationTask
from research.evaluation.multiple_choice import MultipleChoice
from research.generation.responders import Responder
from research.reports.tables import Column, text_table
from research.runtime.accelerators import peak_flops_per_second
from research.training.cost import ForwardFlops, forward_flops

# Of the machine's peak, what answers reach: a guess, which a first run replaces.
_ASSUMED_SHARE = 0.3
# Questions whose prompts are written to see how long they are.
_LOOK = 16


def plan_lines(
    problem: Problem,
    rungs: Sequence[Rung],
    place: Place,
    tuner: Tuner | None = None,
    tunings: Sequence[Tuning] = (),
) -> list[dict[str, Any]]:
    """A line for each way that would be tried, with tokens, FLOPs and seconds of all its rows.

    Rungs above the first build on the best way so far; here on the first one. Of tuning, FLOPs are
    those of training.
    """
    lines: list[dict[str, Any]] = []
    peak = peak_flops_per_second()
    for rung in rungs:
        try:
            ways = rung.ways(place)
        except LeftOut as reason:
            lines.append({"rung": rung.name, "way": f"left out: {reason}"})
            continue
        for way in ways:
            tokens, flops = _row_cost(problem, way)
            total = flops * len(problem.rows.validation)
            line = {"rung": rung.name, "way": way.name, "tokens": tokens, "flops": total}
            lines.append(line | ({"seconds": total / peak / _ASSUMED_SHARE} if peak else {}))
        if place.best is None and ways:
            place = dataclasses.replace(place, best=ways[0])
    for tuning in tunings if tuner else ():
        assert tuner is not None
        trials, flops = tuner.plan(tuning)
        line = {"rung": tuning.name, "way": f"{trials} to {trials + 2} trials", "flops": flops}
        lines.append(line | ({"seconds": flops / peak / _ASSUMED_SHARE} if peak else {}))
    return lines


def plan_text(problem: Problem, bases: Sequence[Base], settings: Settings, folder: Path) -> str:
    """The plan as a table, and what it comes to."""
    templates = settings.templates or default_templates(problem.template, problem.labels)
    place = Place(problem, bases, templates, None, settings.passages)
    tuner = None
    if len(problem.rows.train) >= FEWEST_LABELS and settings.tunings:
        tuner = Tuner(problem, Start(bases[0]), templates[0], folder / "tuning", settings.tuning)
    lines = plan_lines(problem, PROMPTS, place, tuner, settings.tunings)
    columns = [
        Column("rung", "rung"),
        Column("way", "way"),
        Column("tokens", "tokens of a prompt", format=".0f"),
        Column("flops", "FLOPs of all rows", format="si"),
        Column("seconds", "time, a guess", "s", format=".0f"),
    ]
    table = text_table(lines, [c for c in columns if any(c.key in line for line in lines)])
    hours = sum(line.get("seconds", 0.0) for line in lines) / 3600
    return (
        f"{table}\nat most {hours:.2f} hours of {settings.budget_hours:g}: screening drops ways on "
        "the way"
    )


def _row_cost(problem: Problem, way: Way) -> tuple[float, float]:
    """Mean tokens of a prompt, and FLOPs of a row, by the first rows; answers as long as may be."""
    run = runs.open_run(way.base.path)
    task = way.task(problem, problem.screens[0])
    questions = task.retrieve(task.read(), run.tokenizer)[:_LOOK]
    responder = Responder(run)
    lengths = [len(task.write(responder, question).ids) for question in questions]
    abstract = methods.abstract(run.model, run.method, methods.single_layers(run.model))
    of_model = forward_flops(run.model, abstract)
    options = zip(lengths, questions, strict=True)
    flops = [_answer_flops(of_model, task, run, n, q.record) for n, q in options]
    return float(np.mean(lengths)), float(np.mean(flops))


def _answer_flops(of_model: ForwardFlops, task: Any, run: Any, length: int, record: Any) -> float:
    if isinstance(task, MultipleChoice):
        texts, _ = task.read_options(record)
        return of_model.options(length, [max(1, len(run.tokenizer.encode(t))) for t in texts])
    assert isinstance(task, GenerationTask)
    return of_model.answer(length, task.max_tokens)
