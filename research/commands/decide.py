"""Says which way to take for a task, from prompts to tuning: measured, then advised.

    graft decide --task law --base runs/smollm2
    graft decide --task finance --base runs/smollm2 --target 0.9 --budget-hours 2
    graft decide --task tickets.jsonl --base runs/smollm2
    graft decide --config mine.py --base runs/a --base runs/b --price-per-hour 1.2

A ladder of ways is climbed, cheapest first, until the target is met or the budget is spent:
zero-shot, other instructions, worked examples, retrieved examples or passages, constraints, and
tuning (prompts, LoRA, adapters, everything) on growing numbers of labels; with baselines beside
them. All ways answer the same rows; those that lose are dropped on the way. The test rows are asked
once, at the end, for the advised way and its runner-up.

Writes FOLDER/decision.json and FOLDER/decision.html. Answers and trials are kept as they are made,
so the same line goes on after a kill: nothing is asked or trained twice. `--dry-run` reads the rows
and says what will be tried and what it takes. docs/guides/decide.md
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from research.config import cli
from research.runtime.terminal import show

if TYPE_CHECKING:
    from research.decisions.decision import Decision, Settings
    from research.decisions.problem import Problem, Reading
    from research.decisions.ways import Base
    from research.evaluation.tasks import Evaluation
    from research.retrieval import RetrievalConfig
    from research.text.tokenizer import Tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parse(argv)

    from research.checkpoints import runs
    from research.decisions import page
    from research.decisions.decision import decide
    from research.decisions.plan import plan_text
    from research.decisions.problem import open_problem
    from research.decisions.rows import Sizes
    from research.runtime import files, storage
    from research.runtime.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    with cli.clear_errors():
        evaluation = _load(arguments)
        bases = _open_bases(arguments.base)
        tokenizer = runs.open_run(bases[0].path).tokenizer
        name, reading = _read(arguments, evaluation, tokenizer)
        folder = arguments.folder or Path("runs/decide") / name
        storage.check_writable(storage.absolute(folder))
        problem = open_problem(
            name,
            reading,
            folder / "rows",
            tokenizer,
            metric=arguments.metric,
            sizes=Sizes(arguments.labels, arguments.validation_rows, arguments.test_rows),
            prompt_tokens=arguments.prompt_tokens,
        )
        settings = _settings(arguments)
        _show_problem(problem)
        if arguments.dry_run:
            show(plan_text(problem, bases, settings, folder))
            return
        decision = decide(problem, bases, settings, folder, say=show)
        files.write_json(folder / "decision.json", decision.to_dict())
        page.write(folder / "decision.html", decision)
        _show_decision(decision, folder)


def _load(arguments: argparse.Namespace) -> Evaluation | None:
    """The config of what is asked; None: it is a file of rows."""
    from research.commands.tasks import task_config
    from research.decisions.detect import is_file_of_rows
    from research.evaluation.tasks import Evaluation
    from research.runtime import environment

    if arguments.task and is_file_of_rows(arguments.task):
        return None
    config = arguments.config or task_config(arguments.task)
    evaluation = cli.load(Evaluation, config, arguments.overrides)
    for task in evaluation.tasks.values():
        environment.reexec_in_layer(task.layer)
    return evaluation


def _read(
    arguments: argparse.Namespace, evaluation: Evaluation | None, tokenizer: Tokenizer
) -> tuple[str, Reading]:
    """What is decided about: its name, and its task with rows."""
    from research.decisions.detect import Fields, read_file
    from research.decisions.problem import read_task

    if evaluation is None:
        choices = tuple(arguments.choices.split(",")) if arguments.choices else ()
        fields = Fields(arguments.question_field or "", arguments.answer_field or "", choices)
        name = re.sub(r"\W+", "_", Path(arguments.task).stem).strip("_")
        return name, read_file(arguments.task, tokenizer, fields)
    name = arguments.part or arguments.task or next(iter(evaluation.all_tasks), "")
    return name.replace(":", "_"), read_task(evaluation, arguments.part)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.program_parser("decide", __doc__, config_required=False)
    parser.add_argument(
        "--task", metavar="NAME|FILE.jsonl", help="see graft tasks; or rows of your own, no config"
    )
    parser.add_argument("--question-field", metavar="NAME", help="of FILE: what asks")
    parser.add_argument("--answer-field", metavar="NAME", help="of FILE: what answers")
    parser.add_argument("--choices", metavar="A,B", help="of FILE: all answers that there are")
    parser.add_argument("--part", metavar="NAME", help="which of the config's several tasks")
    parser.add_argument("--metric", metavar="NAME", help="which of the task's metrics decides")
    parser.add_argument(
        "--base", action="append", required=True, metavar="DIR", help="a model; several are tried"
    )
    parser.add_argument(
        "--folder", type=cli.on_disk, metavar="DIR", help="default runs/decide/NAME"
    )
    parser.add_argument("--target", type=_share, metavar="X", help="stop where a way has it: 0.9")
    parser.add_argument(
        "--budget-hours", type=_positive, default=1.0, metavar="H", help="default 1"
    )
    parser.add_argument(
        "--requests", type=_positive, default=1000.0, metavar="N", help="a day; default 1000"
    )
    parser.add_argument(
        "--days", type=_positive, default=90.0, metavar="N", help="of such days; default 90"
    )
    parser.add_argument("--price-per-hour", type=_positive, metavar="X", help="of this machine")
    parser.add_argument(
        "--labels-cost", type=_positive, metavar="X", help="of a label, in the same money"
    )
    parser.add_argument("--templates", metavar="FILE", help="JSONL of `name`, `question`, ...")
    parser.add_argument("--documents", metavar="DIR", help="a folder of texts to look things up in")
    parser.add_argument(
        "--labels", type=_count, default=1000, metavar="N", help="most rows to learn from"
    )
    parser.add_argument(
        "--validation-rows", type=_count, default=150, metavar="N", help="to choose by"
    )
    parser.add_argument("--test-rows", type=_count, default=300, metavar="N", help="asked once")
    parser.add_argument(
        "--prompt-tokens", type=_count, default=512, metavar="N", help="longer questions are cut"
    )
    parser.add_argument(
        "--tune", type=_tunings, metavar="A,B", help="ways to tune, of all; `none` tunes nothing"
    )
    parser.add_argument(
        "--tuning-steps", type=_count, default=32, metavar="N", help="of each trial; default 32"
    )
    parser.add_argument(
        "--general-text", metavar="NAME", help="a built-in text: how much of it is forgotten"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan, ask nothing")
    arguments = cli.parse(parser, argv)
    if bool(arguments.task) == bool(arguments.config):
        parser.error("say what is asked: --task NAME, --task FILE.jsonl, or --config FILE")
    of_file = (arguments.question_field, arguments.answer_field, arguments.choices)
    if any(of_file) and not (arguments.task or "").endswith(".jsonl"):
        parser.error("--question-field, --answer-field and --choices are of --task FILE.jsonl")
    if arguments.labels_cost and not arguments.price_per_hour:
        parser.error("--labels-cost is in the money of --price-per-hour: give that too")
    return arguments


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"a positive number, not {text}")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"a share such as 0.9, not {text}")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"a number from 1 on, not {text}")
    return number


def _tunings(text: str) -> list[str]:
    from research.config.suggestions import suggestion
    from research.decisions.rungs.tuned import TUNINGS

    known = {tuning.name: tuning for tuning in TUNINGS}
    names = [] if text == "none" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(
                f"{name!r} is none of {', '.join(known)}{suggestion(name, known)}"
            )
    return names


def _open_bases(paths: Sequence[str]) -> list[Base]:
    """The models, each by a name of its own.

    Raises:
      FileNotFoundError: there is no such run.
      ValueError: two of them are the same, or a bank of adapters.
    """
    from research.decisions.ways import open_base

    bases = []
    for path in paths:
        short = Path(path).name
        name = path if short in {Path(p).name for p in paths if p != path} else short
        bases.append(open_base(path, name)[0])
    if len({base.path for base in bases}) < len(bases):
        raise ValueError("--base names one run twice")
    return bases


def _settings(arguments: argparse.Namespace) -> Settings:
    import jax

    from research.decisions.costs import Prices
    from research.decisions.decision import Settings
    from research.decisions.rules import Volume
    from research.decisions.rungs.tuned import TUNINGS
    from research.decisions.templates import read_templates
    from research.decisions.tuning import TuningSettings

    price, text = arguments.price_per_hour, arguments.general_text
    tunings = [t for t in TUNINGS if arguments.tune is None or t.name in arguments.tune]
    return Settings(
        target=arguments.target,
        budget_hours=arguments.budget_hours,
        prices=Prices(price, arguments.labels_cost or 0.0, "money") if price else Prices(),
        volume=Volume(arguments.requests, arguments.days),
        templates=read_templates(arguments.templates) if arguments.templates else (),
        passages=_passages(arguments.documents) if arguments.documents else None,
        tunings=tuple(tunings),
        tuning=TuningSettings(
            steps=arguments.tuning_steps,
            pretraining_steps=arguments.tuning_steps,
            general_text={"name": text} if text else None,
            # layers one by one are the fastest on a CPU
            changes={"compute": {"max_scan_layers": 1}} if jax.default_backend() == "cpu" else {},
        ),
    )


def _passages(path: str) -> RetrievalConfig:
    from research.data.sources import TextConfig
    from research.retrieval.bm25 import Bm25

    return Bm25(TextConfig("documents", path), contamination="leave_out")


def _show_problem(problem: Problem) -> None:
    rows = problem.rows
    show(
        f"{problem.name}: decided by {problem.metric}; {len(rows.train):,} labels to learn from, "
        f"{len(rows.validation):,} rows to choose by, {len(rows.test):,} to test"
    )
    for note in rows.notes:
        show(f"  {note}")


def _show_decision(decision: Decision, folder: Path) -> None:
    from research.decisions import page

    advice = decision.advice
    show(f"\n{page.finding(decision)}")
    for reason in advice.reasons:
        show(f"  {reason}")
    show(f"  {page.sureness(advice, len(decision.measured(advice.way).scores))}")
    for line in page.changes(advice, decision.settings.volume.days):
        show(f"  {line}")
    for line in page.more_labels(decision):
        show(f"  {line}")
    for reason in dict.fromkeys(decision.left_out.values()):
        names = [name for name, why in decision.left_out.items() if why == reason]
        show(f"  not tried: {', '.join(names)}: {reason}")
    show(f"page: {folder / 'decision.html'}")
