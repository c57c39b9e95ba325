"""Runs one config over some of its values and seeds, and prints a table.

    graft sweep --config configs/quickstart/tune.py:lora --folder runs/sweeps/lora \\
        --axis learning_rate=1e-3,3e-3 --axis method.rank=4,16 --seeds 3
        every combination, each over three seeds that move start, order and dropout together
    graft sweep --config FILE --grow learning_rate=1e-3,3e-3 --folder DIR
        goes on beyond an edge of the values while the best lies there
    graft sweep --config FILE --axis steps=50,100 --folder DIR --dry-run
        trials, FLOPs, hours and money; runs nothing. --topology v5e:2x4 plans for such chips

A key is a path of the config or the end of one. Nothing runs twice: the same line, or one with more
values, goes on in the same folder. For a study with forms, stages and claims: `graft study`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from research.commands.study import add_plan_flags, add_run_flags, prepare_plan, print_plan
from research.config import cli


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.program_parser("sweep", __doc__)
    parser.add_argument(
        "--folder", required=True, metavar="DIR", help="of trials and ledger, also in a bucket"
    )
    parser.add_argument(
        "--axis", action="append", default=[], type=_axis, metavar="KEY=A,B,C", help="values"
    )
    parser.add_argument(
        "--grow", type=_axis, metavar="KEY=A,B,C", help="positive values to start a search with"
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 to N-1")
    parser.add_argument("--evaluation", metavar="FILE[:ARG]", help="a config of graft evaluate")
    parser.add_argument("--metric", default="heldout_loss", help="what the best is chosen by")
    parser.add_argument("--highest", action="store_true", help="the highest metric is the best")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, run nothing")
    parser.add_argument("--keep-models", action="store_true", help="keep the trained models")
    add_run_flags(parser)
    parser.add_argument(
        "--share", default="0/1", metavar="I/N", help="begin with part I of N of the trials"
    )
    add_plan_flags(parser.add_argument_group("with --dry-run"))
    parser.add_argument("--csv", type=cli.on_disk, metavar="FILE", help="write every trial")
    arguments = cli.parse(parser, argv)
    if not arguments.axis and arguments.grow is None:
        parser.error("give --axis KEY=A,B,C, or --grow KEY=A,B,C")
    if arguments.seeds < 1:
        parser.error(f"--seeds is a number of seeds from 1 on, not {arguments.seeds}")
    with cli.clear_errors():
        if arguments.dry_run:
            prepare_plan(arguments)
        elif arguments.topology:
            parser.error("--topology plans, and runs nothing: give --dry-run")
        from research.runtime.compilation_cache import enable_compilation_cache
        from research.studies import axes
        from research.studies.desk import Desk
        from research.studies.share import Share
        from research.studies.study import Stage, Study, Sweep
        from research.studies.workers import side_by_side

        enable_compilation_cache()
        sweep = None
        if arguments.grow:
            key, values = arguments.grow
            sweep = Sweep(tuple(values), key)
        study = Study(
            claim="",
            source="",
            refuted_if="",
            config=arguments.config,
            axes=axes.product(*(axes.axis(key, *values) for key, values in arguments.axis)),
            sweep=sweep,
            stages=(Stage("sweep", tuple(range(arguments.seeds))),),
            evaluation=arguments.evaluation,
            metric=arguments.metric,
            goal="highest" if arguments.highest else "lowest",
        )
        overrides = tuple(arguments.overrides)
        if arguments.dry_run:
            desk = Desk(study, arguments.folder, overrides=overrides)
            raise SystemExit(0 if print_plan(desk, arguments) else 3)
        same = ["sweep", *_without(argv or sys.argv[1:], "--workers", "--csv")]
        with side_by_side(same, arguments.workers, arguments.folder):
            desk = Desk(study, arguments.folder, overrides=overrides)
            desk.run(
                keep_models=arguments.keep_models,
                share=Share.parse(arguments.share),
                trials=arguments.trials,
                together=arguments.together,
            )
        desk.print_table(arguments.csv)


def _without(argv: Sequence[str], *flags: str) -> list[str]:
    """A command line without some flags and their values."""
    others: list[str] = []
    words = iter(argv)
    for word in words:
        if word in flags:
            next(words, None)
        elif word.partition("=")[0] not in flags:
            others.append(word)
    return others


def _axis(text: str) -> tuple[str, list[Any]]:
    """`KEY=A,B,C`; a value is JSON, else text. Lists are JSON: `KEY=[[1,2],[3]]`."""
    key, equals, text_of_values = text.partition("=")
    if not (key and equals and text_of_values):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=A,B,C")
    if text_of_values.startswith("["):
        values = _literal(text_of_values)
        if not isinstance(values, list):
            raise argparse.ArgumentTypeError(f"{text_of_values!r} is no JSON list of values")
        return key, values
    return key, [_literal(part) for part in text_of_values.split(",")]


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
