"""Every method on one base and one task: a rate sweep of its own, then three seeds, one table.

    python -m experiments.methods [--workdir runs/methods] [--only lora dora] [--dry-run]

The base is imported once. Each form of configs/methods/smollm2.py, one after the other, is screened
on a few steps at three rates, by held-out loss, and the sweep goes on past an edge of the grid that
was best. The best rate is confirmed with three other seeds (of start, order and dropout), and those
three models are evaluated on the tasks. Every stage is a command of its own and its numbers go to
the results file at once. What that file holds is not run again: a study that was stopped goes on,
on this machine or on another, and to run a form anew is to take it out of the file.
"""

import argparse
from pathlib import Path

from configs.methods.smollm2 import FORMS
from experiments.methods.study import RESULTS, SEEDS, Study
from research.runtime import signals


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/methods"), metavar="DIR")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=FORMS, default=list(FORMS), metavar="FORM")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="SEED")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    arguments = parser.parse_args()
    study = Study(arguments.workdir, arguments.results, arguments.dry_run)
    study.run(arguments.only, arguments.seeds)


if __name__ == "__main__":
    signals.end_program("methods")
    main()
