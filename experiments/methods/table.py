"""The study's table and plot, from its numbers.

    python -m experiments.methods.table [--results FILE] [--write]

Prints the table; `--write` also writes table.md and plot.svg beside this file, which are committed
with the numbers. Intervals are Student's t over seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.methods.__main__ import SEEDS
from research.reports import page
from research.reports.page import Column
from research.reports.plots import bar_plot, si, standalone
from research.reports.statistics import Estimate, mean_interval

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
    parser.add_argument("--results", type=Path, default=HERE / "results.json", metavar="FILE")
    parser.add_argument("--write", action="store_true", help="write the committed files")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text(encoding="utf-8"))
    text = table(results)
    print(text)
    if arguments.write:
        (HERE / "table.md").write_text(text + "\n", encoding="utf-8")
        (HERE / "plot.svg").write_text(plot(results), encoding="utf-8")


def rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The bases, which nothing was trained of, then the forms, the best first."""
    before = mean_bits(results["bases"]["base"])
    lines: list[dict[str, Any]] = []
    for name, read in results["bases"].items():
        quality = read["quality"]
        right = Estimate(quality["value"], quality["low"], quality["high"], quality["n"])
        moved = mean_bits(read) - before if name != "base" else None
        line = {"form": name, "right": right, "heldout": read.get("heldout_loss")}
        lines.append(line | {"forgetting": moved})
    tuned = []
    for name, form in results["forms"].items():
        runs = list(form["runs"].values())
        if len(runs) < len(SEEDS):  # still at work
            continue
        pick = lambda what, runs=runs: [run[what] for run in runs]  # noqa: E731
        tuned.append(
            {
                "form": name,
                "rate": form["rate"],
                "trainable": runs[0]["trainable_parameters"],
                "bytes": form["bytes"],
                "step": min(pick("quickest_step_seconds")),
                "memory": runs[0]["program_bytes"],
                "right": mean_interval([run["quality"]["value"] for run in runs]),
                "heldout": mean_interval(pick("heldout_loss")),
                "forgetting": mean_interval([mean_bits(run) - before for run in runs]),
            }
        )
    return lines + sorted(tuned, key=lambda line: -line["right"].value)


def table(results: Mapping[str, Any]) -> str:
    return page.text_table(rows(results), COLUMNS)


def plot(results: Mapping[str, Any]) -> str:
    """What each form learnt and what it forgot, side by side."""
    lines = rows(results)
    names = [
        f"{line['form']} ({si(line['trainable'])})" if "trainable" in line else line["form"]
        for line in lines
    ]
    panels = {
        "right answers (%)": [line["right"].scaled(100) for line in lines],
        "forgetting (bits/byte)": [line["forgetting"] for line in lines],
    }
    caption = "In brackets trained parameters. Means and 95% intervals over seeds."
    return standalone(bar_plot(names, panels, caption))


def mean_bits(read: Mapping[str, Any]) -> float:
    """Bits a byte, mean over the kinds of held-out text."""
    bits = read["bits_per_byte"]
    return sum(bits.values()) / len(bits)


if __name__ == "__main__":
    main()
