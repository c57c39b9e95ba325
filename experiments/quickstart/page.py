"""The quickstart's table as text and its results as one page."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from experiments.quickstart.results import Results, TableRow
from research.reports import page
from research.reports.canvas import standalone
from research.reports.plots import Point, bar_plot, line_plot, scatter_plot
from research.reports.tables import Column, table, text_table

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


def text(results: Results) -> str:
    """Both tables for a terminal."""
    tables = (
        text_table([row.values() for row in results.table], COLUMNS),
        text_table([vars(row) for row in results.text], TEXT_COLUMNS),
    )
    return "\n\n".join(filter(None, (*tables, finding(results), results.caveat)))


def finding(results: Results) -> str:
    """The result in a sentence."""
    rows = {row.name: row for row in results.answering_rows}
    quality = {row.name: row.quality.value for row in rows.values() if row.quality is not None}
    best = max(quality, key=quality.__getitem__)
    best_prompted = max(("base, zero-shot", "base, few-shot"), key=quality.__getitem__)
    return (
        f"On {results.task.questions} licence notices that (uncut) resemble nothing in training, "
        f"the best way is {best} with {quality[best]:.0%} right; pretraining first turns "
        f"{quality['from scratch']:.0%} into {quality['tuned, full']:.0%}, LoRA reaches "
        f"{quality['tuned, LoRA']:.0%} with {rows['tuned, LoRA'].trainable_share:.1%} of the "
        f"parameters trained, and prompting the base alone {quality[best_prompted]:.0%}."
    )


def quality_plot(rows: Sequence[TableRow]) -> Markup:
    """Right answers against trained parameters; ways that train nothing are lines."""
    estimates = {row.name: row.quality.scaled(100) for row in rows if row.quality is not None}
    return scatter_plot(
        [
            Point(row.name, row.trainable, estimates[row.name], row.kind)
            for row in rows
            if row.trainable and row.name in estimates
        ],
        "trained parameters",
        "right answers (%)",
        "Bars are 95% intervals over clusters of near-duplicate notices.",
        references={
            row.name: estimates[row.name].value
            for row in rows
            if not row.trainable and row.name in estimates
        },
    )


def describe_base_text(base: TableRow) -> str:
    """Clause about the training text that the base has read."""
    if base.seconds is None:
        return "; what the base read elsewhere is not known, and may hold the held-out text too"
    return ", of which the base read a part"


def describe_base_cost(base: TableRow) -> str:
    """Clause about the cost of the base."""
    if base.seconds is None:
        return "the base was made elsewhere"
    return f"the base itself took {base.seconds:.0f} s and {base.flops:.3g} FLOPs, once"


def write(folder: Path, results: Results) -> Path:
    """Writes report.html in a folder, and quality.svg beside it."""
    plot = quality_plot(results.table)
    (folder / "quality.svg").write_text(standalone(plot), encoding="utf-8")
    training_flops = sum(row.flops or 0 for row in results.answering_rows)
    return page.write(
        folder / "report.html",
        "Pretraining, tuning, prompting: one task, measured",
        _table_section(results),
        page.section("Quality against trained parameters", plot),
        _cost_section(results),
        _loss_section(results),
        page.section(
            "Has the base learnt?",
            "Bits for each byte of held-out text. The token models were fitted on the whole "
            f"training text{describe_base_text(results.table[0])}; xz sees the held-out text "
            "alone.",
            table([vars(row) for row in results.text], TEXT_COLUMNS),
        ),
        _samples_section(results),
        finding=finding(results),
        provenance={
            "command": results.command,
            "machine": f"{results.device}, {platform.machine()}, {platform.system()}",
            "time": f"{results.seconds:.0f} s in all; FLOPs of training shown: "
            f"{training_flops:.3g}",
            "versions": results.versions,
            "configs": results.configs,
        },
    )


def _table_section(results: Results) -> Markup:
    task = results.task
    return page.section(
        "Every way to the same task",
        f"Task: a licence notice, which of {task.labels} licences? {task.questions} test "
        "questions, split from training by near-duplicate cluster "
        f"({task.leak['this_split']:.0%} of test notices have a near twin in training; a random "
        f"split has {task.leak['random_split']:.0%}). Notices are cut to fit {task.window} "
        f"tokens ({task.cut['tuned, full']} are; {task.cut['base, few-shot']} with "
        "worked examples in front), answers never. Nothing was tuned on the test split. "
        f"{results.caveat}",
        table([row.values() for row in results.table], COLUMNS, by="kind"),
    )


def _cost_section(results: Results) -> Markup:
    rows = results.answering_rows
    return page.section(
        "What it costs",
        bar_plot(
            [row.name for row in rows],
            {
                "training (s)": [row.seconds for row in rows],
                "answer (ms)": [1000 * (row.answer_seconds or 0) for row in rows],
                "kept on disk (bytes)": [row.artifact for row in rows],
            },
            f"Training beyond the base; {describe_base_cost(results.table[0])}.",
        ),
    )


def _loss_section(results: Results) -> Markup:
    curves = {name: (curve.tokens, curve.loss) for name, curve in results.curves.items()}
    plots = []
    if "pretrain" in curves:
        plots.append(
            line_plot(
                {RUN_NAMES["pretrain"]: curves.pop("pretrain")},
                "tokens seen",
                "loss (nats a token)",
                "Next token of five kinds of text.",
            )
        )
    plots.append(
        line_plot(
            {RUN_NAMES[name]: curve for name, curve in curves.items()},
            "tokens seen",
            "loss (nats a trained token)",
            "The answer and its end-of-text only.",
            log_y=True,
        )
    )
    return page.section("Loss while training", *plots)


def _samples_section(results: Results) -> Markup:
    notices = [
        dataclasses.replace(
            notice, answers={RUN_NAMES[run]: answer for run, answer in notice.answers.items()}
        )
        for notice in results.samples.notices
    ]
    return page.section(
        "What the models write",
        "Greedy answers to test notices, not picked by hand:",
        page.samples(notices),
        "And what the base makes of a few words:",
        table(
            [vars(each) for each in results.samples.texts],
            [Column("prompt", "start"), Column("text", "the base")],
        ),
    )
