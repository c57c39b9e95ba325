"""Measures speed beside what you would use instead, everyone in turn in one run.

    graft bench step                      a train step beside transformers + PEFT
    graft bench step --no-peer --shape quickstart
    graft bench step --json FILE          the same numbers for a program
    graft bench profile                   where the time of a step goes
    graft bench methods                   tuning methods beside full tuning: time, memory, FLOPs
    graft bench losses                    steps of DPO and GRPO beside TRL's
    graft bench remat                     memory against time, by policy
    graft bench data                      reading batches, tokenising, index, near duplicates
    graft bench overhead                  start, data, host work and checkpoints of a run
    graft bench study                     a sweep in one process beside as many commands
    graft bench generate                  answers beside transformers' generate
    graft bench generate --run DIR --schema FILE     what a constraint adds to a step
    graft bench score                     choosing among answers beside transformers
    graft bench deploy --run DIR          a whole model a task beside one base with many adapters
    graft bench generate --topology v5e v6e --shape llama_1b     the bytes of a token, on chips

`VERB --help` tells more. Figures are medians over rounds with the smallest and the largest; ratios
are taken within a round, because machines drift. The peer needs `tools/setup interop`.
"""

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    from research.benchmarks import (
        data,
        deploy,
        generate,
        harness,
        interop,
        losses,
        methods,
        overhead,
        profile,
        remat,
        score,
        step,
        study,
    )
    from research.config import cli

    verbs = {
        "step": step,
        "losses": losses,
        "methods": methods,
        "profile": profile,
        "remat": remat,
        "data": data,
        "overhead": overhead,
        "study": study,
        "interop": interop,
        "generate": generate,
        "score": score,
        "deploy": deploy,
    }
    parser = argparse.ArgumentParser(
        prog="graft bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, module in verbs.items():
        command = commands.add_parser(
            name,
            help=(module.__doc__ or "").partition("\n")[0],
            description=module.__doc__,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.add_argument(
            "--json", type=cli.on_disk, metavar="FILE", help="write every number there"
        )
        module.add_arguments(command)
    arguments = cli.complete(parser).parse_args(argv)
    with cli.clear_errors():
        try:
            results = verbs[arguments.verb].main(arguments)
        except (RuntimeError, ModuleNotFoundError) as error:
            raise SystemExit(f"graft bench: {error}") from None
    harness.write_json(arguments.json, results)
    if any(name.endswith(".error") for name in results):
        raise SystemExit(1)
