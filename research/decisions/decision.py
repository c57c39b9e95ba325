"""A decision: the climb, the advice, and one look at the test rows of what is advised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.decisions import baselines, final_test, pretraining
from research.decisions.asking import Asker
from research.decisions.bases import BaseFacts, measure_bases
from research.decisions.costs import BuildCost, Prices, RequestCost
from research.decisions.curves import LabelCurve
from research.decisions.final_test import TestResult
from research.decisions.ladder import Budget, Ladder, Measured
from research.decisions.problem import Problem
from research.decisions.rules import Advice, Volume
from research.decisions.rungs import PROMPTS, LeftOut, Rung, constrained
from research.decisions.rungs.base import Place
from research.decisions.rungs.tuned import TUNINGS, Tuning
from research.decisions.templates import PromptTemplate, default_templates
from research.decisions.tuning import FEWEST_LABELS, Start, Tuner, TuningSettings
from research.decisions.ways import Base
from research.evaluation.generation_task import GenerationTask
from research.reports.statistics import Estimate
from research.retrieval import RetrievalConfig


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a decision is made by, beside the problem."""

    # stop where a way has it; None: climb all rungs
    target: float | None = None
    budget_hours: float = 1.0
    prices: Prices = Prices()
    volume: Volume = Volume()
    # in place of the default ones; empty: those
    templates: tuple[PromptTemplate, ...] = ()
    passages: RetrievalConfig | None = None
    # the ways to tune, in their order; empty: nothing is tuned
    tunings: tuple[Tuning, ...] = TUNINGS
    tuning: TuningSettings = TuningSettings()
    # every way is asked to the end, and the test rows too: to see whether an advice is right
    is_exhaustive: bool = False


@dataclasses.dataclass(frozen=True)
class Decision:
    """What was measured, and what follows from it."""

    problem: Problem
    settings: Settings
    table: tuple[Measured, ...]
    # rung -> why it was left out
    left_out: Mapping[str, str]
    advice: Advice
    # the advised way and the runner-up first; empty: there are no test rows
    tests: tuple[TestResult, ...]
    # the first of them less the second
    test_lead: Estimate | None
    # of the bases; empty: there is one alone
    bases: tuple[BaseFacts, ...]
    # of each way to tune with several numbers of labels
    curves: tuple[LabelCurve, ...]
    # of the budget, by what was recorded
    used_seconds: float

    def measured(self, name: str) -> Measured:
        """What is known of a way."""
        return next(each for each in self.table if each.name == name)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON."""
        advice = dataclasses.asdict(self.advice)
        return {
            "task": self.problem.name,
            "metric": self.problem.metric,
            "rows": {
                "labels": len(self.problem.rows.train),
                "validation": len(self.problem.rows.validation),
                "test": len(self.problem.rows.test),
                "texts": len(self.problem.rows.texts),
            },
            "notes": list(self.problem.rows.notes),
            "target": self.settings.target,
            "budget_hours": self.settings.budget_hours,
            "used_hours": self.used_seconds / 3600,
            "prices": dataclasses.asdict(self.settings.prices),
            "volume": dataclasses.asdict(self.settings.volume),
            "advice": advice,
            "ways": [_way_dict(each) for each in self.table],
            "bases": [dataclasses.asdict(base) for base in self.bases],
            "curves": [curve_dict(curve) for curve in self.curves],
            "left_out": dict(self.left_out),
            "test": [
                {
                    "way": each.name,
                    "quality": dataclasses.asdict(each.quality),
                    "scores": each.scores.tolist(),
                }
                for each in self.tests
            ],
            "test_lead": None if self.test_lead is None else dataclasses.asdict(self.test_lead),
        }


def decide(
    problem: Problem,
    bases: Sequence[Base],
    settings: Settings,
    folder: Path,
    *,
    cache: Path | None = None,
    say: Callable[[str], None] = print,
    rungs: Sequence[Rung] = PROMPTS,
) -> Decision:
    """Measures ways to answer a problem's questions, and advises one.

    Args:
      bases: the models that may be asked.
      folder: of what is tuned.
      cache: of answers; None: the default one.
      say: takes a line for each way that was measured.

    Raises:
      ValueError: no way could be asked.
    """
    asker = Asker(problem, cache)
    ladder = Ladder(
        problem=problem,
        ask=asker.ask,
        budget=Budget(settings.budget_hours * 3600),
        check=asker.check,
        say=say,
        target=settings.target,
        drops=not settings.is_exhaustive,
    )
    templates = settings.templates or default_templates(problem.template, problem.labels)
    place = Place(problem, bases, templates, None, settings.passages)
    facts = measure_bases(problem, bases, folder) if len(bases) > 1 else []
    for fact in facts:
        say(f"{fact.name}: {fact.bits_per_byte:.3f} bits per byte of the task's texts")
    try:
        _add_baselines(ladder)
        place = ladder.climb(rungs, place)
        asker.close()  # for the memory that training takes
        _tune(ladder, place, settings, folder)
        advice = ladder.advise(settings.prices, settings.volume)
        names = [name for name in (advice.way, advice.runner_up) if name is not None]
        if settings.is_exhaustive:
            names += [each.name for each in ladder.finished() if each.name not in names]
        tests = _test(ladder, names, settings, asker)
    finally:
        asker.close()
    return Decision(
        problem=problem,
        settings=settings,
        table=tuple(ladder.table.values()),
        left_out=ladder.left_out,
        advice=advice,
        tests=tuple(tests),
        test_lead=final_test.lead_of(problem, tests),
        curves=tuple(ladder.curves()),
        bases=tuple(facts),
        used_seconds=ladder.budget.spending,
    )


def _test(
    ladder: Ladder, names: Sequence[str], settings: Settings, asker: Asker
) -> list[TestResult]:
    """Asks these ways the test rows, or as many of them as the budget has left."""
    problem, budget = ladder.problem, ladder.budget
    count, ways = len(problem.rows.test), [ladder.table[name] for name in names]
    if not count:
        return []
    if not settings.is_exhaustive:
        count = final_test.affordable_rows(ways[:2], budget, count)
    if count < len(problem.rows.test):
        ladder.say(f"test: {count:,} of {len(problem.rows.test):,} rows, for the budget")
    tests = []
    for way in ways:
        result, seconds = final_test.ask_test(problem, way, asker, count)
        budget.spend(seconds)
        tests.append(result)
        ladder.say(f"test, {result.name}: {result.quality:.1%} % of {result.quality.n}")
    return tests


def _add_baselines(ladder: Ladder) -> None:
    """Measures what answers without a model."""
    try:
        for each in baselines.measure_baselines(ladder.problem):
            ladder.add(each)
            ladder.say(f"{each.name}: {each.quality:.1%} % of {len(each.scores)}")
    except LeftOut as reason:
        ladder.left_out["baselines"] = str(reason)


def _tune(ladder: Ladder, place: Place, settings: Settings, folder: Path) -> None:
    """Tunes the base that was best so far, and constrains what comes of it."""
    tunings, problem, stop = settings.tunings, ladder.problem, ladder.stop
    names = [*(tuning.name for tuning in tunings), pretraining.NAME]
    if not tunings:
        ladder.left_out["tuning"] = "no way to tune is asked for"
        return
    if len(problem.rows.train) < FEWEST_LABELS:
        stop = f"{len(problem.rows.train)} labels are too few to learn from"
    if stop:
        ladder.left_out |= dict.fromkeys(names, stop)
        return
    base = place.bases[0] if place.best is None else place.best.base
    template, start = place.templates[0], Start(base)
    ladder.tune(Tuner(problem, start, template, folder / "tuning", settings.tuning), tunings)
    _pretrain(ladder, base, template, settings, folder)
    best = ladder.best_way()
    is_tuned = best is not None and best.build.trainable_parameters > 0
    if best is not None and is_tuned and isinstance(problem.task, GenerationTask):
        rung = Rung("constraints on what was tuned", constrained.ways)
        ladder.climb([rung], dataclasses.replace(place, best=best.way))


def _pretrain(
    ladder: Ladder, base: Base, template: PromptTemplate, settings: Settings, folder: Path
) -> None:
    """Has the base read the task's texts, and tunes it then in the way that was best without."""
    members = [e for e in ladder.finished() if e.build.trainable_parameters and e.way is not None]
    best = max(members, key=lambda each: float(each.scores.mean()), default=None)
    reason = ladder.stop
    if not reason and best is None:
        reason = "no way to tune was level with the best, after which it would come"
    if reason or best is None:
        ladder.left_out[pretraining.NAME] = reason
        return
    try:
        start = pretraining.pretrain(
            ladder.problem, base, folder / "pretraining", settings.tuning, ladder.clock(shares=2)
        )
    except (LeftOut, ValueError) as error:
        ladder.left_out[pretraining.NAME] = str(error)
        ladder.say(f"{pretraining.NAME}: left out: {error}")
        return
    [tuning] = [each for each in settings.tunings if each.name == best.rung]
    tuner = Tuner(ladder.problem, start, template, folder / "pretrained_tuning", settings.tuning)
    ladder.tune(tuner, [tuning], start.prefix)


def curve_dict(curve: LabelCurve) -> dict[str, Any]:
    """A curve as JSON, with what as many labels again would buy."""
    more = curve.labels[-1]
    return {
        "way": curve.name,
        "labels": list(curve.labels),
        "means": list(curve.means),
        "exponent": float(curve.slopes[0]),
        "more_labels": more,
        "gain": dataclasses.asdict(curve.gain(more)),
    }


def _way_dict(each: Measured) -> dict[str, Any]:
    request: RequestCost = each.request
    build: BuildCost = each.build
    return {
        "name": each.name,
        "rung": each.rung,
        "quality": None if each.quality is None else dataclasses.asdict(each.quality),
        "scores": each.scores.tolist(),
        "request": dataclasses.asdict(request),
        "build": dataclasses.asdict(build),
        "reason": each.reason,
        "forgetting": each.forgetting,
        "base": None if each.way is None else each.way.base.path,
    }
