"""A decision's page: the advice first, then what it was made of."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from markupsafe import Markup
from numpy.typing import ArrayLike

from research.decisions.costs import seconds_at, speed_of
from research.decisions.decision import Decision
from research.decisions.ladder import Measured
from research.decisions.rules import Advice
from research.evaluation.examples import failures
from research.reports import page
from research.reports.markup import render
from research.reports.plots import Point, line_plot, scatter_plot
from research.reports.tables import Column, table

# Seconds under which a request costs nothing that a figure could show.
_LEAST_SECONDS = 1e-6


def write(path: str | os.PathLike[str], decision: Decision) -> Path:
    """Writes the page, whole or not at all."""
    rows = decision.problem.rows
    sections = [
        _advice(decision),
        page.section("Quality against cost", _frontier(decision)),
        page.section("Every way", _table(decision)),
    ]
    if decision.bases:
        sections.append(page.section("The bases", _bases(decision)))
    if decision.curves:
        sections.append(page.section("More labels", *_curves(decision)))
    if lines := _dropped(decision):
        sections.append(page.section("What was not asked to the end", _list(lines)))
    if rows.notes:
        sections.append(page.section("The rows", _list([f"{note}." for note in rows.notes])))
    advised = decision.measured(decision.advice.way)
    if advised.result is not None:
        sections.append(page.section("What it gets wrong", *failures(advised.result)))
    settings = {key: decision.to_dict()[key] for key in ("prices", "volume", "target")}
    return page.write(
        path,
        f"{decision.problem.name}: which way to take",
        *sections,
        finding=finding(decision),
        provenance={"metric": decision.problem.metric, "settings": settings},
        stylesheet="evaluation/style.css",
    )


def finding(decision: Decision) -> str:
    """The advice in a sentence."""
    advice = decision.advice
    quality = decision.measured(advice.way).quality
    text = f"Take {advice.way}: {quality:.1%} % {decision.problem.metric}"
    if decision.tests:
        test = decision.tests[0].quality
        text += (
            f" on the rows it was chosen by, {test:.1%} % on {test.n} that nothing was chosen by"
        )
    return f"{text}."


def changes(advice: Advice, unit_days: float) -> list[str]:
    """What would change the advice, a sentence each."""
    lines = []
    for each in advice.crossings[:3]:
        side = "more" if each.is_above else "fewer"
        lines.append(
            f"{each.way} is as good, and the cheaper one with {side} than {_count(each.a_day)} "
            f"requests a day over {unit_days:g} days"
        )
    return lines


def more_labels(decision: Decision) -> list[str]:
    """What as many labels again would buy, a sentence each."""
    prices, lines = decision.settings.prices, []
    for curve in decision.curves:
        more = curve.labels[-1]
        gain = curve.gain(more).scaled(100)
        cost = f", for {more * prices.label:,.0f} {prices.unit}" if prices.label else ""
        lines.append(f"{curve.name}: {more:,} more labels buy {gain:+.1f} points{cost}")
    return lines


def sureness(advice: Advice, count: int) -> str:
    """How sure the advice is, in a sentence."""
    points = 100 * advice.regret
    share = f"in {advice.sureness:.0%} of resamples of the {count} rows no way is better"
    if points < 0.05:
        return f"{share}, and with 95% confidence none is better by a tenth of a point"
    return f"{share}; with 95% confidence the best of all is at most {points:.1f} points better"


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _advice(decision: Decision) -> Markup:
    advice = decision.advice
    volume = decision.settings.volume
    lines = [f"{reason}." for reason in advice.reasons]
    lines.append(f"{sureness(advice, len(decision.measured(advice.way).scores))}.")
    if advice.runner_up is not None and advice.lead is not None:
        lead = advice.lead.scaled(100)
        lines.append(f"Against the runner-up, {advice.runner_up}: {lead:+.1f} points.")
    if decision.test_lead is not None:
        lead = decision.test_lead.scaled(100)
        lines.append(f"On the test rows, which were asked once: {lead:+.1f} points.")
    lines += [f"{line}." for line in changes(advice, volume.days)]
    lines += [f"{line}." for line in more_labels(decision)]
    return page.section("The advice", _list(lines))


def _list(lines: list[str]) -> Markup:
    return render("decisions/list.html", lines=[line[0].upper() + line[1:] for line in lines])


def _bases(decision: Decision) -> Markup:
    columns = [
        Column("name", "base"),
        Column("parameters", "parameters", format="si"),
        Column("licence", "licence"),
        Column("bits_per_byte", "the task's texts", "bits/byte", format=".3f"),
    ]
    rows = [dataclasses.asdict(base) for base in decision.bases]
    caption = "Texts without their answers. Which base goes on is decided by what it answers."
    return table(rows, columns, caption)


def _curves(decision: Decision) -> list[Markup | str]:
    """The metric over labels: what was measured, and the law to twice as many."""
    series: dict[str, tuple[ArrayLike, ArrayLike]] = {}
    for curve in decision.curves:
        places = [*curve.labels, 2 * curve.labels[-1]]
        law = [100 * curve.predict(place).value for place in places]
        series[curve.name] = (curve.labels, [100 * mean for mean in curve.means])
        series[f"{curve.name}, law"] = (places, law)
    plot = line_plot(
        series,
        "labels",
        f"{decision.problem.metric} (%)",
        "A power law of the share that is wrong, through what was measured with one seed.",
        log_x=True,
    )
    return [plot, _list([f"{line}." for line in more_labels(decision)])]


def _frontier(decision: Decision) -> Markup:
    """Quality against the cost of a request; the frontier is what nothing beats in both."""
    speed = _speed(decision)
    finished = [each for each in decision.table if not each.reason and each.quality is not None]
    costs = {e.name: max(seconds_at(e.request, speed), _LEAST_SECONDS) for e in finished}
    on_frontier = {
        each.name
        for each in finished
        if not any(
            other.scores.mean() >= each.scores.mean()
            and costs[other.name] <= costs[each.name]
            and (other.scores.mean(), -costs[other.name]) != (each.scores.mean(), -costs[each.name])
            for other in finished
        )
    }
    points = [
        Point(each.name, costs[each.name], each.quality.scaled(100), _kind(each, on_frontier))
        for each in finished
        if each.quality is not None
    ]
    return scatter_plot(
        points,
        "seconds of a request",
        f"{decision.problem.metric} (%)",
        "On the frontier nothing is better and cheaper. Seconds are FLOPs at this machine's speed.",
    )


def _kind(each: Measured, on_frontier: set[str]) -> str:
    return "on the frontier" if each.name in on_frontier else "behind it"


def _speed(decision: Decision) -> float | None:
    return speed_of(e.request for e in decision.table if e.way is not None and not e.reason)


def _table(decision: Decision) -> Markup:
    speed, advice = _speed(decision), decision.advice
    rows = [_row(each, speed, advice) for each in decision.table if each.quality is not None]
    unit = decision.settings.prices.unit
    columns = [
        Column("name", "way"),
        Column("quality", decision.problem.metric, "%", 100, ".1f"),
        Column("n", "rows"),
        Column("labels", "labels", group="to build"),
        Column("build", "time", "s", format=".3g", group="to build"),
        Column("parameters", "trained", format="si", group="to build"),
        Column("artifact", "artifact", "bytes", format="si", group="to build"),
        Column("tokens", "tokens", format=".0f", group="a request"),
        Column("seconds", "time", "s", format=".3g", group="a request"),
        Column("flops", "FLOP", format="si", group="a request"),
        Column("memory", "memory", "bytes", format="si", group="a request"),
        Column("forgetting", "forgets", "bits/byte", format="+.3f"),
        Column("total", "all requests", unit, format=".3g"),
    ]
    volume = decision.settings.volume
    caption = (
        f"Intervals of 95%. The last column is building and {volume.a_day:,.0f} requests a day "
        f"over {volume.days:g} days; a request is its FLOPs at the machine's speed."
    )
    return table(rows, columns, caption, by="rung")


def _row(each: Measured, speed: float | None, advice: Advice) -> dict[str, Any]:
    request, build = each.request, each.build
    return {
        "rung": each.rung,
        "name": f"{each.name} ← advised" if each.name == advice.way else each.name,
        "quality": each.quality,
        "n": len(each.scores),
        "labels": build.labels,
        "build": build.seconds or None,
        "parameters": build.trainable_parameters or None,
        "artifact": build.artifact_bytes or None,
        "tokens": request.tokens or None,
        "seconds": seconds_at(request, speed),
        "flops": request.flops or None,
        "memory": request.memory_bytes or None,
        "forgetting": each.forgetting,
        "total": advice.totals.get(each.name),
    }


def _dropped(decision: Decision) -> list[str]:
    lines = [f"{each.name}: {each.reason}." for each in decision.table if each.reason]
    return lines + [f"{rung}: left out: {why}." for rung, why in decision.left_out.items()]
