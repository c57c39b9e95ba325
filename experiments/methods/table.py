"""Table and plot of the study, from its results.

    python -m experiments.methods.table [--results FILE] [--write]

Prints the table; `--write` also writes table.md and plot.svg beside this file, which are committed
with the numbers. Intervals are Student's t over seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.methods.results import FormResult, StudyResults
from experiments.methods.study import RESULTS, SEEDS
from research.reports.plots import bar_plot, standalone
from research.reports.statistics import mean_interval
from research.reports.tables import Column, format_si, text_table

HERE = Path(__file__).parent
COLUMNS = [
    Column("form", "form"),
    Column("rate", "rate", format=".0e", tip="the best of its own sweep, by held-out loss"),
    Column("trainable", "trained", format="si", tip="parameters"),
    Column("bytes", "on disk", "MB", 1e-6, ".2f", tip="what is kept beside the base"),
    Column("step", "a step", "s", format=".2f", tip="the quickest of all runs'"),
    Column("memory", "peak memory", "GiB", 2**-30, ".2f", tip="of the compiled program"),
    Column("right", "right answers", "%", 100, ".1f", tip="of the test questions, over seeds"),
    Column("heldout", "held-out loss", "nats", format=".3f"),
    Column("forgetting", "forgetting", "bits/byte", format="+.3f", tip="after minus before"),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--write", action="store_true", help="write the committed files")
    arguments = parser.parse_args()
    results = StudyResults.load(arguments.results)
    text = table(results)
    print(text)
    if arguments.write:
        (HERE / "table.md").write_text(text + "\n", encoding="utf-8")
        (HERE / "plot.svg").write_text(plot(results), encoding="utf-8")


def rows(results: StudyResults) -> list[dict[str, Any]]:
    """Rows of the bases, which are not trained, then of the forms, the best first."""
    scores = {name: base.scores for name, base in results.bases.items() if base.scores is not None}
    before = scores["base"].mean_bits
    base_rows: list[dict[str, Any]] = []
    for name, base in scores.items():
        forgetting = base.mean_bits - before if name != "base" else None
        base_rows.append(
            {
                "form": name,
                "right": base.quality,
                "heldout": results.bases[name].heldout_loss,
                "forgetting": forgetting,
            }
        )
    form_rows = [
        _form_row(name, form, before)
        for name, form in results.forms.items()
        if len(form.runs) >= len(SEEDS)  # else it is still at work
    ]
    return base_rows + sorted(form_rows, key=lambda row: -row["right"].value)


def _form_row(name: str, form: FormResult, before: float) -> dict[str, Any]:
    runs = list(form.runs.values())
    return {
        "form": name,
        "rate": form.rate,
        "trainable": runs[0].trainable_parameters,
        "bytes": form.bytes,
        "step": min(run.quickest_step_seconds for run in runs),
        "memory": runs[0].program_bytes,
        "right": mean_interval([run.scores.quality.value for run in runs]),
        "heldout": mean_interval([run.heldout_loss for run in runs]),
        "forgetting": mean_interval([run.scores.mean_bits - before for run in runs]),
    }


def table(results: StudyResults) -> str:
    return text_table(rows(results), COLUMNS)


def plot(results: StudyResults) -> str:
    """Quality and forgetting of each form, side by side."""
    table_rows = rows(results)
    names = [
        f"{row['form']} ({format_si(row['trainable'])})" if "trainable" in row else row["form"]
        for row in table_rows
    ]
    panels = {
        "right answers (%)": [row["right"].scaled(100) for row in table_rows],
        "forgetting (bits/byte)": [row["forgetting"] for row in table_rows],
    }
    caption = "In brackets trained parameters. Means and 95% intervals over seeds."
    return standalone(bar_plot(names, panels, caption))


if __name__ == "__main__":
    main()
