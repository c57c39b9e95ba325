"""The quickstart's table as text and its results as one page."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.reports import page
from research.reports.page import Column, Point
from research.reports.plots import Html, standalone
from research.reports.statistics import Estimate

RUN_NAMES = {
    "pretrain": "pretraining",
    "base": "base",
    "full": "tuned, full",
    "lora": "tuned, LoRA",
    "scratch": "from scratch",
}
COLUMNS = [
    Column("name", "way"),
    Column("objective", "objective"),
    Column("examples", "examples seen", format="si", tip="documents or labelled examples read"),
    Column("tokens", "tokens seen", format="si", tip="tokens read in training, repeats counted"),
    Column("labels", "labels needed", format=",.0f", tip="different labelled examples used"),
    Column("trainable", "trained", format="si", tip="parameters that train, or are fitted"),
    Column("trainable_share", "trained", "%", 100, ".2f", tip="share of the base's parameters"),
    Column("flops", "training", "FLOPs", format="si"),
    Column("seconds", "training", "s", format=",.0f", tip="wall clock with start and compilation"),
    Column("peak_memory", "peak memory", "GB", 1e-9, ".2f", tip="of the training process"),
    Column("artifact", "on disk", "bytes", format="si", tip="weights kept beside the base"),
    Column("answer_seconds", "answer", "ms", 1000, ".0f", tip="to choose among all answers"),
    Column("quality", "right answers", "%", 100, ".1f", tip="test split, 95% interval by clusters"),
    Column("gain", "against the row above", "points", 100, "+.1f", tip="paired, 95% interval"),
    Column("bits_per_byte", "held-out text", "bits/byte", format=".3f"),
    Column("forgetting", "forgetting", "bits/byte", format="+.3f", tip="after minus before tuning"),
]
TEXT_COLUMNS = [
    Column("kind", "held-out text"),
    Column("bytes", "bytes", format=",.0f"),
    Column("model", "base", "bits/byte", format=".3f"),
    Column("bigram", "bigram", "bits/byte", format=".3f"),
    Column("unigram", "unigram", "bits/byte", format=".3f"),
    Column("xz", "xz -9", "bits/byte", format=".3f"),
]


def table(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows with their intervals as estimates."""
    return [
        {key: _estimate(value) if isinstance(value, dict) else value for key, value in row.items()}
        for row in results["table"]
    ]


def _estimate(value: Mapping[str, float]) -> Estimate:
    return Estimate(value["value"], value["low"], value["high"], int(value["n"]))


def text(results: Mapping[str, Any]) -> str:
    """Both tables for a terminal."""
    tables = (
        page.text_table(table(results), COLUMNS),
        page.text_table(results["text"], TEXT_COLUMNS),
    )
    return "\n\n".join(filter(None, (*tables, finding(results), results["caveat"])))


def finding(results: Mapping[str, Any]) -> str:
    """The result in a sentence, whatever it is."""
    rows = {row["name"]: row for row in results["table"] if "quality" in row}
    best = max(rows, key=lambda name: rows[name]["quality"]["value"])
    share = lambda name: f"{rows[name]['quality']['value']:.0%}"  # noqa: E731
    prompted = max(
        ("base, zero-shot", "base, few-shot"), key=lambda name: rows[name]["quality"]["value"]
    )
    return (
        f"On {results['task']['questions']} licence notices that (uncut) resemble nothing in "
        f"training, the best way is {best} with {share(best)} right; pretraining first turns "
        f"{share('from scratch')} into {share('tuned, full')}, LoRA reaches "
        f"{share('tuned, LoRA')} with {rows['tuned, LoRA']['trainable_share']:.1%} of the "
        f"parameters trained, and prompting the base alone {share(prompted)}."
    )


def quality_plot(rows: Sequence[Mapping[str, Any]]) -> Html:
    """Right answers against trained parameters; ways that train nothing are lines."""
    asked = [row for row in rows if "quality" in row]
    return page.scatter_plot(
        [
            Point(row["name"], row["trainable"], row["quality"].scaled(100), row["kind"])
            for row in asked
            if row.get("trainable")
        ],
        "trained parameters",
        "right answers (%)",
        "Bars are 95% intervals over clusters of near-duplicate notices.",
        references={
            row["name"]: 100 * row["quality"].value for row in asked if not row.get("trainable")
        },
    )


def reading(base: Mapping[str, Any]) -> str:
    """What the base has read of the training text."""
    if "seconds" not in base:
        return "; what the base read elsewhere is not known, and may hold the held-out text too"
    return ", of which the base read a part"


def origin(base: Mapping[str, Any]) -> str:
    """What the base took."""
    if "seconds" not in base:
        return "the base was made elsewhere"
    return f"the base itself took {base['seconds']:.0f} s and {base['flops']:.3g} FLOPs, once"


def write(folder: Path, results: Mapping[str, Any]) -> Path:
    """DIR/report.html."""
    rows = table(results)
    trained = [row for row in rows if row.get("flops") and "quality" in row]
    asked = [row for row in rows if "quality" in row]
    curves = results["curves"]
    tuned = {RUN_NAMES[n]: (c["tokens"], c["loss"]) for n, c in curves.items() if n != "pretrain"}
    task, leak = results["task"], results["task"]["leak"]
    seconds = [row["seconds"] for row in asked]
    notices = [
        {**item, "answers": {RUN_NAMES[n]: answer for n, answer in item["answers"].items()}}
        for item in results["samples"]["notices"]
    ]
    (folder / "quality.svg").write_text(standalone(quality_plot(rows)), encoding="utf-8")
    return page.write(
        folder / "report.html",
        "Pretraining, tuning, prompting: one task, measured",
        page.section(
            "Every way to the same task",
            f"Task: a licence notice, which of {task['labels']} licences? {task['questions']} test "
            "questions, split from training by near-duplicate cluster "
            f"({leak['this_split']:.0%} of test notices have a near twin in training; a random "
            f"split has {leak['random_split']:.0%}). Notices are cut to fit {task['window']} "
            f"tokens ({task['cut']['tuned, full']} are; {task['cut']['base, few-shot']} with "
            "worked examples in front), answers never. Nothing was tuned on the test split. "
            f"{results['caveat']}",
            page.table(rows, COLUMNS, by="kind"),
        ),
        page.section(
            "Quality against trained parameters",
            quality_plot(rows),
        ),
        page.section(
            "What it costs",
            page.bar_plot(
                [row["name"] for row in asked],
                {
                    "training (s)": seconds,
                    "answer (ms)": [1000 * row["answer_seconds"] for row in asked],
                    "kept on disk (bytes)": [row["artifact"] for row in asked],
                },
                f"Training beyond the base; {origin(rows[0])}.",
            ),
        ),
        page.section(
            "Loss while training",
            *[
                page.line_plot(
                    {RUN_NAMES[name]: (curves[name]["tokens"], curves[name]["loss"])},
                    "tokens seen",
                    "loss (nats a token)",
                    "Next token of five kinds of text.",
                )
                for name in ("pretrain",)
                if name in curves
            ],
            page.line_plot(
                tuned,
                "tokens seen",
                "loss (nats a trained token)",
                "The answer and its end-of-text only.",
                log_y=True,
            ),
        ),
        page.section(
            "Has the base learnt?",
            "Bits for each byte of held-out text. The token models were fitted on the whole "
            f"training text{reading(rows[0])}; xz sees the held-out text alone.",
            page.table(results["text"], TEXT_COLUMNS),
        ),
        page.section(
            "What the models write",
            "Greedy answers to test notices, not picked by hand:",
            page.samples(notices),
            "And what the base makes of a few words:",
            page.table(
                results["samples"]["texts"], [Column("prompt", "start"), Column("text", "the base")]
            ),
        ),
        finding=finding(results),
        provenance={
            "command": results["command"],
            "machine": f"{results['device']}, {platform.machine()}, {platform.system()}",
            "time": f"{results['seconds']:.0f} s in all; FLOPs of training shown: "
            f"{sum(row['flops'] for row in trained):.3g}",
            "versions": results["versions"],
            "configs": results["configs"],
        },
    )
