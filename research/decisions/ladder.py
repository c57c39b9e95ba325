"""The climb: rung by rung, cheapest first, until the target is met or the budget is spent.

What is tried next depends on the answers so far and on what they took, as it was recorded, and not
on the clock: a climb that was killed goes on as if it had not been.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from research.decisions import rules
from research.decisions.asking import join_results
from research.decisions.costs import BuildCost, Prices, RequestCost, seconds_at, speed_of
from research.decisions.curves import LabelCurve, fit_curve
from research.decisions.problem import Problem
from research.decisions.rungs import LeftOut, Rung
from research.decisions.rungs.base import Place
from research.decisions.rungs.tuned import Tuning
from research.decisions.screening import screen
from research.decisions.trials import Clock
from research.decisions.tuning import Tuned, Tuner
from research.decisions.ways import Way
from research.evaluation.results import TaskResult, estimate
from research.reports.statistics import Estimate

# (way, split) -> its answers. Raises ValueError: they cannot be asked.
Ask = Callable[[Way, str], TaskResult]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What is known of a way."""

    name: str
    rung: str
    # on the rows that it was asked; None: it was asked none
    quality: Estimate | None
    # [n] the metric of each of these rows, in their order
    scores: np.ndarray
    request: RequestCost
    build: BuildCost
    # why it is not among the ways that can be advised; empty: it is
    reason: str = ""
    # what a model answers with; None: it is a baseline
    way: Way | None = None
    result: TaskResult | None = None
    # bits per byte of general text more than its base; None: nothing was tuned, or not measured
    forgetting: float | None = None


@dataclasses.dataclass
class Budget:
    """Seconds that may be spent, and are, by what was recorded of every answer and training."""

    seconds: float
    spending: float = 0.0
    # for the last test
    reserve: float = 0.0

    def has(self, seconds: float = 0.0) -> bool:
        """Whether so many more are left."""
        return self.spending + seconds + self.reserve <= self.seconds

    def spend(self, seconds: float) -> None:
        """Counts seconds that were recorded."""
        self.spending += seconds


@dataclasses.dataclass
class Ladder:
    """A climb of one problem."""

    problem: Problem
    ask: Ask
    budget: Budget
    # raises ValueError where a way's model cannot be asked
    check: Callable[[Way, Sequence[str]], None]
    say: Say
    target: float | None = None
    # whether ways that lose are dropped on the way
    drops: bool = True
    # name -> what is known of it, in the order in which ways were tried
    table: dict[str, Measured] = dataclasses.field(default_factory=dict)
    # rung -> why it was left out
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    # why the climb ended before its last rung; empty: it did not
    stop: str = ""

    def climb(self, rungs: Sequence[Rung], place: Place) -> Place:
        """Tries the rungs in their order; gives the place that is reached."""
        for rung in rungs:
            if self.stop:
                self.left_out[rung.name] = self.stop
                continue
            try:
                ways = rung.ways(place)
            except LeftOut as reason:
                self.left_out[rung.name] = str(reason)
                self.say(f"{rung.name}: left out: {reason}")
                continue
            self._try(ways)
            best = self.best_way()
            place = dataclasses.replace(place, best=None if best is None else best.way)
            self._look_for_stop()
        return place

    def tune(self, tuner: Tuner, tunings: Sequence[Tuning], prefix: str = "") -> None:
        """Tunes in one way after the other, with all labels and then with fewer of them.

        A way that loses with all labels gets no curve. None takes more than its share of what is
        left, of which there is one for each way to come, and one for what follows.
        """
        for number, tuning in enumerate(tunings):
            name = f"{prefix}{tuning.name}"
            if self.stop:
                self.left_out[name] = self.stop
                continue
            try:
                clock = self.clock(shares=len(tunings) - number + 1)
                for place, tuned in enumerate(tuner.tune(tuning, clock)):
                    self._ask_tuned(tuned, is_screened=place == 0)
                    if self.table[tuned.way.name].reason:
                        break  # no curve of what loses with all labels
            except ValueError as error:
                self.left_out[name] = str(error)
                self.say(f"{name}: left out: {error}")
            self._reserve()
            self._look_for_stop()

    def clock(self, shares: int = 1) -> Clock:
        """The budget as trials count it: one of so many shares of what is left."""
        budget = self.budget
        left = budget.seconds - budget.spending - budget.reserve
        end = budget.spending + max(0.0, left) / shares

        def has_time(seconds: float) -> bool:
            return budget.spending + seconds <= end and budget.has(seconds)

        return Clock(has_time, budget.spend, self.say)

    def _ask_tuned(self, tuned: Tuned, is_screened: bool) -> None:
        """Asks a tuned model; a point of a curve is asked all rows, whatever it loses to."""
        name = tuned.way.name
        if is_screened:
            self._try([tuned.way])
        else:
            results = [self.ask(tuned.way, screen) for screen in self.problem.screens]
            self.budget.spend(sum(result.seconds for result in results))
            self._keep(tuned.way, results, "")
        self.table[name] = dataclasses.replace(self.table[name], forgetting=tuned.forgetting)

    def curves(self) -> list[LabelCurve]:
        """Of each way to tune that was tried with several numbers of labels."""
        by_rung: dict[str, list[Measured]] = {}
        for each in self.finished():
            if each.build.trainable_parameters and each.way is not None:
                by_rung.setdefault(each.rung, []).append(each)
        result = []
        for rung, members in by_rung.items():
            members.sort(key=lambda each: each.build.labels)
            labels = [each.build.labels for each in members]
            if len(set(labels)) == len(labels):
                scores = np.stack([each.scores for each in members])
                result.append(fit_curve(rung, labels, scores, self.groups()))
        return [curve for curve in result if curve is not None]

    def add(self, measured: Measured) -> None:
        """A way that was measured elsewhere, such as a baseline."""
        self.table[measured.name] = measured
        self._look_for_stop()

    def finished(self) -> list[Measured]:
        """The ways that were asked all rows."""
        return [each for each in self.table.values() if not each.reason]

    def best_way(self) -> Measured | None:
        """The best of the ways to ask a model."""
        models = [each for each in self.finished() if each.way is not None]
        return max(models, key=lambda each: float(each.scores.mean()), default=None)

    def groups(self, rows: int | None = None) -> list[str] | None:
        """The group of each of the first rows; None where each is its own."""
        records = [r for screen in self.problem.screens for r in self.problem.records(screen)]
        names = [str(record["cluster"]) for record in records][:rows]
        return names if len(set(names)) < len(names) else None

    def lines(self) -> list[rules.Line]:
        """What the advice is made of."""
        speed = speed_of(each.request for each in self.finished() if each.way is not None)
        return [
            rules.Line(each.name, each.scores, each.build, seconds_at(each.request, speed))
            for each in self.finished()
        ]

    def advise(self, prices: Prices, volume: rules.Volume) -> rules.Advice:
        """The advice by what is known now."""
        return rules.advise(self.lines(), prices, volume, self.target, self.groups())

    def _try(self, ways: Sequence[Way]) -> None:
        """Asks the ways of a rung, screened against all that were asked before."""
        able: dict[str, Way] = {}
        for way in ways:
            try:
                self.check(way, self.problem.screens)
                able[way.name] = way
            except ValueError as error:
                self._keep(way, [], f"it cannot be asked: {error}")
        results: dict[str, list[TaskResult]] = {name: [] for name in able}

        def ask(name: str, part: int) -> np.ndarray | None:
            own = results[name]
            rows = len(self.problem.records(self.problem.screens[part]))
            if not self.budget.has(_row_seconds(own or self._all_results()) * rows):
                return None
            own.append(self.ask(able[name], self.problem.screens[part]))
            self.budget.spend(own[-1].seconds)
            return self._scores(own)

        rivals = {e.name: e.scores for e in self.finished() if e.way is not None}
        outcomes = screen(
            [*able], len(self.problem.screens), ask, lambda n: self.groups(n), rivals, self.drops
        )
        for outcome in outcomes:
            self._keep(able[outcome.name], results[outcome.name], outcome.reason)
        self._reserve()

    def _keep(self, way: Way, results: Sequence[TaskResult], reason: str) -> None:
        if not results:
            none = np.zeros(0)
            self.table[way.name] = Measured(
                way.name, way.rung, None, none, RequestCost(), way.build, reason, way
            )
            self.say(f"{way.name}: {reason}")
            return
        result = join_results(results)
        quality = estimate(result.answers, self.problem.metric)
        self.table[way.name] = Measured(
            name=way.name,
            rung=way.rung,
            quality=quality,
            scores=self._scores(results),
            request=RequestCost.of(result),
            build=way.build,
            reason=reason,
            way=way,
            result=result,
        )
        self.say(f"{way.name}: {quality:.1%} % of {quality.n}" + (f"; {reason}" if reason else ""))

    def _scores(self, results: Sequence[TaskResult]) -> np.ndarray:
        metric = self.problem.metric
        return np.asarray([a.scores.get(metric, 0.0) for r in results for a in r.answers])

    def _all_results(self) -> list[TaskResult]:
        return [each.result for each in self.table.values() if each.result is not None]

    def _reserve(self) -> None:
        """Keeps time for the test: both ways that are asked are as slow as the slowest so far.

        At most a quarter of the budget, for which fewer test rows are asked then.
        """
        seconds = [each.request.seconds for each in self.finished() if each.way is not None]
        every_row = 2 * max(seconds, default=0.0) * len(self.problem.rows.test)
        self.budget.reserve = min(every_row, self.budget.seconds / 4)

    def _look_for_stop(self) -> None:
        if self.target is not None:
            for each in self.finished():
                if each.quality is not None and each.quality.value >= self.target:
                    self.stop = f"the target is met by {each.name}"
                    return
        budget = self.budget
        if not budget.has():
            seconds = (budget.seconds, budget.spending, budget.reserve)
            minutes = [each / 60 for each in seconds]
            self.stop = (
                "the budget is spent: of {:.0f} minutes {:.0f} are gone, and {:.0f} are for the "
                "test rows".format(*minutes)
            )


def _row_seconds(results: Sequence[TaskResult]) -> float:
    """Seconds of a row, by what rows took; 0 where none was asked."""
    rows = sum(len(result.answers) for result in results)
    return sum(result.seconds for result in results) / rows if rows else 0.0
