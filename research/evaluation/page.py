"""A page of an evaluation: its numbers in their parts, and answers to read.

The page is `research.reports.page`'s: it makes no request, runs no script and escapes every text,
so that whatever a model writes is only read. The same results are the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from research.evaluation.breakdown import (
    Breakdown,
    Confusion,
    Slice,
    SurenessBin,
    break_down,
    never_given,
)
from research.evaluation.comparison import MetricDifference
from research.evaluation.examples import differing, failures
from research.evaluation.results import TaskResult
from research.evaluation.text_task import bits_per_byte, perplexity
from research.reports import canvas, page
from research.reports.markup import render
from research.reports.statistics import Estimate
from research.reports.tables import Column, table


def _percent(key: str, header: str) -> Column:
    return Column(key, header, "%", 100, ".1f")


def write(
    path: str | os.PathLike[str],
    title: str,
    results: Mapping[str, TaskResult],
    *,
    against: tuple[str, Mapping[str, TaskResult], Sequence[MetricDifference]] | None = None,
    otherwise: Sequence[str] = (),
    warnings: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the page, whole or not at all.

    Args:
      path: a file on a disk.
      results: task -> its answers.
      against: what the other model is called, its answers, and the differences.
      otherwise: what the other was questions otherwise by, a line a setting.
      warnings: what a reader must know of the results, a line each.
      provenance: of the results, for the foot of the page.
    """
    sections = [page.section("To know first", *warnings)] if warnings else []
    texts = {name: result for name, result in results.items() if result.is_text}
    questions = {name: result for name, result in results.items() if not result.is_text}
    sections += [_summary(questions)] if questions else []
    sections += [_text(name, result) for name, result in texts.items()]
    if against is not None:
        sections.append(_against(*against, otherwise))
    for name, result in questions.items():
        sections.append(_task(name, result))
        if against is not None and name in against[1]:
            sections.append(differing(name, result, against[0], against[1][name]))
    if results:
        sections.append(_costs(results))
    settings = {f"settings of {name}": result.settings for name, result in results.items()}
    return page.write(
        path,
        title,
        *sections,
        finding=_finding(questions) if questions else _finding_of_text(texts),
        provenance={**(provenance or {}), **settings},
        stylesheet="evaluation/style.css",
    )


def _finding(results: Mapping[str, TaskResult]) -> str:
    """The first metric of every task, in a sentence."""
    parts = []
    for name, result in results.items():
        for metric, value in list(result.metrics.items())[:1]:
            parts.append(f"{name}: {metric} {value:.1%} % of {value.n:,}")
    return "; ".join(parts[:4]) + ("." if len(parts) < 5 else f"; and {len(parts) - 4} more.")


def _finding_of_text(results: Mapping[str, TaskResult]) -> str:
    """Bits per byte of every source, in a sentence."""
    parts = [
        f"{source}: {bits:.3f} bits per byte"
        for result in results.values()
        for source, bits in bits_per_byte(result).items()
    ]
    return "; ".join(parts[:4]) + ("." if len(parts) < 5 else f"; and {len(parts) - 4} more.")


def _summary(results: Mapping[str, TaskResult]) -> Markup:
    rows = [
        {"task": name, "metric": metric, "value": value, "n": value.n, "span": _span(value)}
        for name, result in results.items()
        for metric, value in result.metrics.items()
    ]
    columns = [
        Column("metric", "metric"),
        _percent("value", "mean"),
        Column("span", "0 to 100 %"),
        Column("n", "n"),
    ]
    caption = (
        "Intervals of 95 %: Wilson's for shares, Student's for other means, resampled where "
        "questions come in groups."
    )
    return page.section("Metrics", table(rows, columns, caption, by="task"))


def _span(value: Estimate | float) -> Markup | None:
    """A number with its interval between 0 and 1, as a small picture; None: it lies elsewhere."""
    number = value if isinstance(value, float) else value.value
    low, high = (number, number) if isinstance(value, float) else (value.low, value.high)
    if not 0 <= number <= 1:
        return None
    low, high = max(low, 0.0), min(high, 1.0)
    return render(
        "evaluation/span.html",
        low=f"{100 * low:.1f}",
        width=f"{100 * (high - low):.1f}",
        value=f"{min(98.8, 100 * number):.1f}",
        label=f"{number:.3f} of 1",
    )


def _text(name: str, result: TaskResult) -> Markup:
    rows = [
        {
            "source": source,
            "bits": bits if bits.n > 1 else bits.value,
            "perplexity": perplexity(result, source) if bits.n > 1 else None,
            "documents": bits.n,
        }
        for source, bits in bits_per_byte(result).items()
    ]
    columns = [
        Column("source", "source"),
        Column("bits", "bits per byte", format=".3f"),
        Column("perplexity", "perplexity of a token", format=".2f"),
        Column("documents", "documents"),
    ]
    caption = "Lower is better. Intervals of 95 %, documents resampled."
    return page.section(f"Held-out text: {name}", table(rows, columns, caption))


def _against(
    name: str,
    others: Mapping[str, TaskResult],
    differences: Sequence[MetricDifference],
    otherwise: Sequence[str],
) -> Markup:
    rows = [
        {
            "task": each.task,
            "metric": each.metric,
            "first": each.first,
            "second": each.second,
            "difference": each.paired,
            "p": each.p_value,
        }
        for each in differences
    ]
    columns = [
        Column("metric", "metric"),
        _percent("first", "this run"),
        _percent("second", "the other"),
        Column("difference", "difference", "points", scale=100, format="+.1f"),
        Column("p", "p", format=".2g"),
    ]
    caption = (
        "Paired by question; p of “neither is better”, corrected for all metrics that are "
        "compared (Holm)."
    )
    notes = [f"Asked otherwise: {line}." for line in otherwise]
    return page.section(f"Against {name}", *notes, table(rows, columns, caption, by="task"))


def _task(name: str, result: TaskResult) -> Markup:
    parts: list[str] = []
    breakdown = break_down(result)
    counts = {
        "questions cut to the window": result.truncated,
        "answers cut at their longest": result.cut - result.failed,
        "answers cut where their constraint failed": result.failed,
        "answers in which nothing could be read": result.unreadable,
        "prompts without a passage": result.without_passages,
        **result.unscored,
    }
    counted = [f"{count:,} {what}" for what, count in counts.items() if count]
    if labels := never_given(result.answers):
        counted.append(f"never answered: {', '.join(labels)}")
    parts.append("; ".join([f"{len(result.answers):,} questions", *counted]) + ".")
    parts += [_slices(of, slices) for of, slices in breakdown.slices.items()]
    parts += _confusion(breakdown)
    parts += _sureness(result, breakdown.sureness)
    parts += failures(result)
    return page.section(name, *parts)


def _slices(of: str, slices: Sequence[Slice]) -> Markup:
    metrics = list(dict.fromkeys(metric for each in slices for metric in each.metrics))[:6]
    rows = [
        {
            "name": each.name,
            "n": each.n,
            **{f"metric {metric}": each.metrics.get(metric) for metric in metrics},
            "span": _span(each.metrics[metrics[0]]) if metrics[0] in each.metrics else None,
        }
        for each in slices
    ]
    columns = [Column("name", of), Column("n", "n")]
    columns += [_percent(f"metric {metric}", metric) for metric in metrics]
    columns.insert(3, Column("span", "0 to 100 %"))
    return Markup("<h3>By {}</h3>\n{}").format(of, table(rows, columns))


def _confusion(breakdown: Breakdown) -> list[Markup]:
    confusion: Confusion | None = breakdown.confusion
    if confusion is None:
        return []
    sums = np.maximum(confusion.counts.sum(axis=1, keepdims=True), 1)
    shares = confusion.counts / sums
    rows = [
        {
            "label": label,
            "cells": [
                {
                    "count": int(count),
                    "share": f"{shares[number, place]:.2f}",
                    "is_right": confusion.answers[place] == label,
                }
                for place, count in enumerate(confusion.counts[number])
            ],
        }
        for number, label in enumerate(confusion.labels)
    ]
    matrix = render(
        "evaluation/confusion.html",
        answers=confusion.answers,
        rows=rows,
        caption="Counts; a row is all questions with that right answer, the darker the larger its "
        "share.",
    )
    return [Markup("<h3>What is taken for what</h3>\n{}").format(matrix)]


def _sureness(result: TaskResult, bins: Sequence[SurenessBin]) -> list[Markup]:
    calibration = result.calibration
    if calibration is None or not bins:
        return []
    caption = (
        f"Share of right answers by how sure the model was, with intervals of 95 %; the larger a "
        f"point, the more answers. On the line it is as often right as it is sure. Calibration "
        f"error {calibration.error:.1%}, Brier score {calibration.brier:.3f}; of the surest half "
        f"{calibration.surest_half:.1%} are right."
    )
    with canvas.style():
        figure, (axes,) = canvas.make_figure(
            5.0, [""], False, False, "probability of the answer", "share right", width=7.5
        )
        axes.plot([0, 1], [0, 1], color=canvas.MUTED, linewidth=1, linestyle=(0, (2, 2)))
        most = max(each.right.n for each in bins)
        for each in bins:
            x, (value, low, high) = each.confidence, canvas.bounds(each.right)
            axes.plot([x, x], [low, high], color=canvas.SERIES[0], linewidth=1.2, alpha=0.6)
            size = 4 + 8 * (each.right.n / most) ** 0.5
            axes.plot([x], [value], "o", color=canvas.SERIES[0], markersize=size)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        description = f"share right against sureness, {len(bins)} bins"
        plot = canvas.to_page(figure, description, caption)
    return [Markup("<h3>How sure, and how often right</h3>\n{}").format(plot)]


def _costs(results: Mapping[str, TaskResult]) -> Markup:
    rows = [
        {
            "task": name,
            "prompt": result.prompt_tokens or None,
            "new": result.new_tokens or None,
            "read": result.tokens_read or None,
            "seconds": result.seconds,
            "flops": result.cost.flops or None,
            "weights": result.cost.weight_bytes or None,
            "cache": result.cost.cache_bytes or None,
        }
        for name, result in results.items()
    ]
    columns = [
        Column("task", "task"),
        Column("prompt", "of prompts", group="tokens"),
        Column("new", "of answers", group="tokens"),
        Column("read", "to choose", group="tokens"),
        Column("seconds", "time", "s", format=".1f"),
        Column("flops", "FLOP", format="si"),
        Column("weights", "weights", "bytes", format="si", group="memory"),
        Column("cache", "keys and values", "bytes", format="si", group="memory"),
    ]
    caption = (
        "FLOPs in closed form: 2 a parameter for each token that is read or written, the head's "
        "for predictions, and attention; padding is left out. Seconds with compilation."
    )
    return page.section("Cost", table(rows, columns, caption))
