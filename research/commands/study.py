"""Runs studies: many trials of one config, each once, in a ledger that can be asked.

    graft study plan experiments/NAME       trials, FLOPs, hours and money; runs nothing
    graft study plan experiments/NAME --topology v5e:2x4 --shares 4    on four such slices
    graft study run experiments/NAME        runs what is missing; after Ctrl-C or a kill, again
    graft study status experiments/NAME     what is done, missing, diverged or failed
    graft study show experiments/NAME       the table so far; --csv FILE writes every trial
    graft study query experiments/NAME "SELECT cell, avg(heldout_loss) FROM trials GROUP BY cell"
    graft study report experiments/NAME     writes README.md, plots, report.html, ledger.parquet
    graft study index experiments           writes experiments/README.md: all studies, one line each
    graft study clean experiments/NAME      removes what trials left on the disk; results stay

A study is a folder with a `study.py` (docs/guides/studies.md). Several processes, on this machine
or on others with the same --folder, may run one study: each takes trials that no other has. For a
sweep without a file: `graft sweep`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from research.config import cli
from research.runtime import terminal
from research.runtime.environment import ROOT

PRICES = ROOT / "configs" / "prices.json"
WORKERS = "processes that share the cores"
SUBCOMMANDS = ("plan", "run", "status", "show", "query", "report", "index", "clean")


def main(argv: Sequence[str] | None = None) -> None:
    arguments = cli.complete(_parser()).parse_args(argv)
    with cli.clear_errors():
        if arguments.command == "plan":
            prepare_plan(arguments)
        from research.runtime.compilation_cache import enable_compilation_cache
        from research.studies import index
        from research.studies.bases import make_bases, missing_bases
        from research.studies.desk import Desk
        from research.studies.ledger import Ledger
        from research.studies.located import located
        from research.studies.share import Share
        from research.studies.study import FILE, load
        from research.studies.trials import Resolver
        from research.studies.workers import side_by_side

        if arguments.command == "index":
            terminal.show(f"wrote {index.write(Path(arguments.study))}")
            return
        enable_compilation_cache()
        study = load(arguments.study)
        place = Path(arguments.study).resolve()
        home = place.parent if place.suffix == ".py" else place
        folder = arguments.folder or f"runs/studies/{home.name}"
        with located(
            place if place.suffix == ".py" else home / FILE
        ):  # before bases are made, which may take hours
            Resolver(study).check()
        if arguments.command == "run":
            make_bases(study.bases)
        elif lines := missing_bases(study.bases):
            texts = "\n".join(f"  {line}" for line in lines)
            raise ValueError(
                f"bases of the study are not there; graft study run makes them:\n{texts}"
            )
        if arguments.command == "run":
            same = ["study", "run", str(place), "--folder", folder, "--share", arguments.share]
            same += ["--keep-models"] * arguments.keep_models
            same += ["--together", str(arguments.together)] if arguments.together else []
            if arguments.retry:  # before the other processes look
                Ledger(folder).remove_failed()
            with side_by_side(same, arguments.workers, folder):
                desk = Desk(study, folder, home)
                desk.run(
                    retry=arguments.retry,
                    keep_models=arguments.keep_models,
                    share=Share.parse(arguments.share),
                    trials=arguments.trials,
                    together=arguments.together,
                )
            return
        desk = Desk(study, folder, home)
        if arguments.command == "plan":
            raise SystemExit(0 if print_plan(desk, arguments) else 3)
        elif arguments.command == "status":
            desk.print_status()
        elif arguments.command == "show":
            desk.print_table(arguments.csv)
        elif arguments.command == "query":
            desk.print_query(arguments.sql)
        elif arguments.command == "report":
            desk.write_report()
        else:
            desk.clean()


def add_plan_flags(parser: argparse._ActionsContainer) -> None:
    """The flags of what plans a study."""
    parser.add_argument(
        "--topology",
        metavar="VERSION:SHAPE",
        help="plan for chips, such as v5e:2x4; with tools/setup preflight the TPU compiler says "
        "what fits",
    )
    parser.add_argument(
        "--roofline-share",
        type=float,
        default=0.5,
        metavar="X",
        help="how much of the roofline's speed trials reach on chips (default 0.5)",
    )
    parser.add_argument("--prices", type=cli.on_disk, default=PRICES, metavar="FILE")
    parser.add_argument(
        "--price-per-hour", type=float, metavar="X", help="of this machine, without --topology"
    )
    parser.add_argument(
        "--shares", type=int, default=1, metavar="N", help="so many machines side by side"
    )


def add_run_flags(parser: argparse._ActionsContainer) -> None:
    """The flags of what runs trials."""
    parser.add_argument(
        "--workers",
        type=_worker_count,
        default=1,
        metavar="N",
        help=f"{WORKERS}; auto: as many as cores and memory hold",
    )
    parser.add_argument("--trials", type=int, metavar="N", help="end after so many trials")
    parser.add_argument(
        "--together", type=int, metavar="N", help="most trials that train as one program"
    )


def _worker_count(text: str) -> int:
    return 0 if text == "auto" else int(text)  # workers.AUTO, whose imports `--help` spares


def prepare_plan(arguments: argparse.Namespace) -> None:
    """Sets up the TPU compiler, before JAX makes its first device.

    Raises:
      ValueError: flags that do not go together.
    """
    if min(arguments.shares, arguments.workers) < 1:
        raise ValueError("--shares and --workers are 1 at least")
    if not 0 < arguments.roofline_share <= 1:
        raise ValueError("--roofline-share is over 0, and at most 1")
    if not arguments.topology:
        return
    if arguments.price_per_hour is not None or arguments.workers > 1:
        raise ValueError("--price-per-hour and --workers are of this machine: not with --topology")
    from configs import presets
    from research.preflight import examine

    examine.prepare_environment(presets.flags(arguments.topology))


def print_plan(desk, arguments: argparse.Namespace) -> bool:
    """Prints what a study will take; whether everything fits."""
    from research.config import schema
    from research.preflight.examine import Prices
    from research.studies.prices import Accelerators

    if not arguments.topology:
        return desk.print_plan(arguments.workers, arguments.shares, arguments.price_per_hour)
    prices = schema.load_json(Prices, arguments.prices)
    chips = Accelerators(arguments.topology, prices, arguments.roofline_share, arguments.shares)
    return desk.print_plan(chips=chips)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graft study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    texts = {
        "plan": "trials, FLOPs, hours and money, before anything runs",
        "run": "run what is missing",
        "status": "what is done, and what is not",
        "show": "the table so far",
        "query": "SQL over all trials",
        "report": "write the study's page and its ledger into its folder",
        "index": "write README.md of a folder of studies: a line each, with its verdicts",
        "clean": "remove what trials left on the disk",
    }
    for name in SUBCOMMANDS:
        command = commands.add_parser(name, help=texts[name], description=texts[name])
        what = "the folder of studies" if name == "index" else "the study's folder, or its study.py"
        command.add_argument("study", metavar="DIR", help=what)
        if name == "index":
            continue
        command.add_argument(
            "--folder",
            metavar="DIR",
            help="where trials and the ledger are: DIR or gs://BUCKET/DIR "
            "(default runs/studies/NAME)",
        )
        if name == "plan":
            command.add_argument("--workers", type=int, default=1, metavar="N", help=WORKERS)
            add_plan_flags(command)
        if name == "run":
            command.add_argument(
                "--retry", action="store_true", help="run trials that failed again"
            )
            command.add_argument(
                "--keep-models", action="store_true", help="keep the trained models on the disk"
            )
            add_run_flags(command)
            command.add_argument(
                "--share",
                default="0/1",
                metavar="I/N",
                help="begin with part I of N of the trials, then help with the others",
            )
        if name == "show":
            command.add_argument("--csv", type=cli.on_disk, metavar="FILE", help="every trial")
        if name == "query":
            command.add_argument("sql", help="SQL; the tables are `trials` and `ledger`")
    return parser
