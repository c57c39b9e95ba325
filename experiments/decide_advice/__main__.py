"""Is the advice of graft decide right? Every way asked to the end says so, in twelve settings.

    python -m experiments.decide_advice --dry-run
    python -m experiments.decide_advice [--only licences-40-quickstart] [--bases smollm2]

A setting is a task, a number of labels and a base: licences, diabetes and education, with 40 and
400 labels, of the quickstart's base and of the one that read four times as much. The ladder is
climbed twice: as graft decide does, with screening, and again with every way asked to the end, all
of which then answer the test rows. Answers and trials are shared: nothing is asked or trained
twice. Counted is in how many settings the advised way is the best, or not told from the best on the
test rows, by how many points it lies under it, and what it costs over the cheapest as good.

What results.json has is not run again; table.md is written anew after each setting. The bases are
made where they are not there (3 and 12 minutes on two cores).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

from experiments.decide_advice.judge import Judgment, judge, summarize
from research.reports.statistics import Estimate
from research.reports.tables import Column, text_table
from research.runtime import signals
from research.runtime.files import write_json
from research.runtime.terminal import show

HERE = Path(__file__).parent
FOLDER = Path("runs/decide_advice")
# name -> (task of configs/tasks, which of its tasks)
TASKS = {
    "licences": ("law", None),
    "diabetes": ("healthcare", "diabetes"),
    "education": ("education", None),
}
LABELS = (40, 400)
BASES = {"quickstart": "runs/quickstart/pretrain", "longer": "runs/studies/longer"}
SMOLLM2 = {"smollm2": "runs/smollm2"}
COLUMNS = [
    Column("setting", "setting"),
    Column("advised", "advised"),
    Column("best", "best on the test"),
    Column("regret", "advised less best", "points", scale=100, format="+.1f"),
    Column("as_good", "as good"),
    Column("cost_ratio", "cost over the cheapest as good", format=".3g"),
    Column("ways", "ways"),
]


class Setting(NamedTuple):
    """One advice that is judged."""

    task: str
    labels: int
    base: str

    @property
    def name(self) -> str:
        return f"{self.task}-{self.labels}-{self.base}"


def settings(bases: dict[str, str]) -> list[Setting]:
    """All of them, for some bases."""
    return [Setting(*each) for each in itertools.product(TASKS, LABELS, bases)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="SETTING", help="these of them")
    parser.add_argument("--bases", choices=("ladder", "smollm2"), default="ladder")
    parser.add_argument("--results", type=Path, default=HERE / "results.json", metavar="FILE")
    parser.add_argument("--dry-run", action="store_true", help="the plan of each, run nothing")
    arguments = parser.parse_args()
    bases = BASES if arguments.bases == "ladder" else SMOLLM2
    file = arguments.results
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if not arguments.dry_run:
        make_bases(arguments.bases)
    for setting in settings(bases):
        if setting.name in results or (arguments.only and setting.name not in arguments.only):
            continue
        show(f"== {setting.name}")
        judgment = run(setting, bases[setting.base], arguments.dry_run)
        if judgment is not None:
            results[setting.name] = dataclasses.asdict(judgment)
            write_json(file, results)
            file.with_name("table.md").write_text(table(results), encoding="utf-8")
    if results:
        show(table(results))


def make_bases(which: str) -> None:
    """Makes the bases that are not there."""
    from configs.studies import longer
    from research.studies.bases import make_bases as make

    line = f"graft convert import --from smollm2 --out {SMOLLM2['smollm2']}"
    make({SMOLLM2["smollm2"]: line} if which == "smollm2" else longer.MAKES)


def run(setting: Setting, base: str, dry_run: bool) -> Judgment | None:
    """Climbs twice and judges; None in a dry run."""
    from research.commands.tasks import task_config
    from research.config import cli
    from research.decisions.decision import Settings, decide
    from research.decisions.problem import open_problem, read_task
    from research.decisions.rows import Sizes
    from research.decisions.tuning import TuningSettings
    from research.decisions.ways import open_base
    from research.evaluation.tasks import Evaluation
    from research.runtime.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    task, part = TASKS[setting.task]
    folder = FOLDER / setting.name
    model, tokenizer = open_base(base, setting.base)
    problem = open_problem(
        setting.name,
        read_task(cli.load(Evaluation, task_config(task)), part),
        folder / "rows",
        tokenizer,
        sizes=Sizes(labels=setting.labels),
        prompt_tokens=96,
        example_tokens=24,
    )
    own = Settings(
        budget_hours=10.0, tuning=TuningSettings(changes={"compute": {"max_scan_layers": 1}})
    )
    if dry_run:
        from research.decisions.plan import plan_text

        show(plan_text(problem, [model], own, folder))
        return None
    advice = decide(problem, [model], own, folder, say=show).to_dict()
    every = decide(
        problem, [model], dataclasses.replace(own, is_exhaustive=True), folder, say=show
    ).to_dict()
    write_json(folder / "advice.json", advice)
    write_json(folder / "every.json", every)
    names = [str(record["cluster"]) for record in problem.rows.test]
    return judge(setting.name, advice, every, names if len(set(names)) < len(names) else None)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown with a line for each setting, and what they come to."""
    judgments = [
        Judgment(**{**each, "regret": Estimate(**each["regret"])}) for each in results.values()
    ]
    rows = [
        {**dataclasses.asdict(each), "regret": each.regret, "as_good": _word(each)}
        for each in judgments
    ]
    total = summarize(judgments)
    mean, worst = 100 * total["mean_regret"], 100 * total["worst_regret"]
    text = (
        f"The advised way is the best in {total['best']} of {total['settings']} settings, and not "
        f"told from it in {total['as_good']:.0%} % of them; it lies {mean:.1f} points under the "
        f"best on average, {worst:.1f} at worst, and costs {total['median_cost_ratio']:.2g} times "
        "the cheapest that is as good (median)."
    )
    return f"{text_table(rows, COLUMNS)}\n\n{text}\n"


def _word(judgment: Judgment) -> str:
    return "the best" if judgment.is_best else ("yes" if judgment.is_as_good else "no")


if __name__ == "__main__":
    signals.end_program("decide_advice")
    main()
