#!/usr/bin/env python3
"""Measures speed beside what you would use instead, everyone in turn in one run.

    tools/bench.py step                      a train step beside transformers + PEFT
    tools/bench.py step --no-peer --shape quickstart
    tools/bench.py step --json FILE          the same numbers for a program
    tools/bench.py profile                   where the time of a step goes
    tools/bench.py methods                   tuning methods beside full tuning: time, memory, FLOPs
    tools/bench.py remat                     memory against time, by policy
    tools/bench.py data                      reading batches, tokenising, index, near duplicates
    tools/bench.py overhead                  start, data, host work and checkpoints of a run

`VERB --help` tells more. Figures are medians over rounds with the smallest and the largest; ratios
are taken within a round, because machines drift. The peer needs `tools/setup interop`.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools import environment  # noqa: E402


def main() -> None:
    environment.enter()
    from research import config as door
    from tools.benchmarks import data, harness, interop, methods, overhead, profile, remat, step

    verbs = {
        "step": step,
        "methods": methods,
        "profile": profile,
        "remat": remat,
        "data": data,
        "overhead": overhead,
        "interop": interop,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, module in verbs.items():
        command = commands.add_parser(
            name,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.add_argument(
            "--json", type=door.on_disk, metavar="FILE", help="write every number there"
        )
        module.add_arguments(command)
    arguments = parser.parse_args()
    try:
        results = verbs[arguments.verb].main(arguments)
    except RuntimeError as error:
        raise SystemExit(f"bench.py: {error}") from None
    harness.write_json(arguments.json, results)
    if any(name.endswith(".error") for name in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
