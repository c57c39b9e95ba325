"""Faults at random, for a while: kills, signals, damaged files, full disks, links.

    tools/torture                          five minutes of everything, another seed each time
    tools/torture --seconds 3600 --seed 7  longer, and the same cases again
    tools/torture --only GGUF safetensors  some of the families
    tools/torture --repeat signals:3:7     one case alone: family, number, seed

A case makes one fault and looks whether what docs/reference/faults.md promises holds. At the end
there is a table; of a case that failed the folder stays, with what.txt, and the command that
repeats it. Exit status 1 if one failed. Moments of signals depend on the machine: a case of them
may need several tries to fail again.

Families: checkpoint, tuned run, token cache, prepared data, tokenizer, safetensors, GGUF, PEFT
adapter (bytes flipped, cut, zeroed, files gone); signals, commands (SIGKILL, SIGINT, SIGTERM);
lost folder (a run's lock or folder removed, or moved); full disk; links.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from research.runtime import signals
from tests.torture import damage, disks, kills
from tests.torture.cases import Case, Family, PromiseError, Tally
from tests.torture.worlds import World, build


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tools/torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=300, help="how long (default 300)")
    parser.add_argument("--seed", type=int, help="of all choices (default: another each time)")
    parser.add_argument("--only", nargs="+", metavar="FAMILY", help="some of the families")
    parser.add_argument("--repeat", metavar="FAMILY:NUMBER:SEED", help="one case")
    parser.add_argument("--folder", type=Path, help="where it works (default: a temporary one)")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="graft-torture-"))
    folder = folder.absolute()
    print(f"torture: in {folder}", flush=True)
    families, opener = all_families(build(folder / "world"))
    tallies: dict[str, Tally] = {}
    try:
        seed, cases = choose(arguments, families)
        deadline = time.monotonic() + arguments.seconds
        for family, number in cases:
            if time.monotonic() > deadline:
                break
            place = folder / f"{family.name}-{number}"
            attempt(Case(family.name, number, seed, place), family, tallies)
    except KeyError as error:
        parser.error(f"there is no family {error}; there are {', '.join(families)}")
    finally:
        opener.close()
    return report(tallies, families, folder, keep=bool(arguments.folder))


def choose(
    arguments: argparse.Namespace, families: dict[str, Family]
) -> tuple[int, Iterator[tuple[Family, int]]]:
    """The seed, and the cases; raises KeyError for a family that there is not."""
    if arguments.repeat:
        name, number, seed = arguments.repeat.rsplit(":", 2)
        return int(seed), iter([(families[name], int(number))])
    seed = arguments.seed
    if seed is None:
        seed = random.SystemRandom().randrange(10**6)
    return seed, deal([families[name] for name in arguments.only or families])


def all_families(world: World) -> tuple[dict[str, Family], damage.Opener]:
    """By name, and the worker that some of them share."""
    damages, opener = damage.families(world)
    families = [*damages, *kills.families(world), *disks.families(world)]
    return {family.name: family for family in families}, opener


def deal(families: list[Family]) -> Iterator[tuple[Family, int]]:
    """Families by their weight, in turn, with a number for each of their cases."""
    numbers = {family.name: itertools.count() for family in families}
    while True:
        for family in families:
            for _ in range(family.weight):
                yield family, next(numbers[family.name])


def attempt(case: Case, family: Family, tallies: dict[str, Tally]) -> None:
    """Does a case, and removes its folder if all held."""
    tally = tallies.setdefault(family.name, Tally())
    shutil.rmtree(case.folder, ignore_errors=True)
    case.folder.mkdir(parents=True)
    try:
        how = family.run(case)
    except PromiseError as error:
        message = str(error)
    except Exception:  # of torture itself, or of a kind that nobody thought of
        message = traceback.format_exc()
    else:
        tally.outcomes[how] = tally.outcomes.get(how, 0) + 1
        shutil.rmtree(case.folder)
        return
    tally.failures.append(message)
    (case.folder / "failure.txt").write_text(message)
    print(
        f"\nFAILED {case.family} {case.number}: {message}\n"
        f"  folder: {case.folder}\n"
        f"  again:  tools/torture --repeat '{case.family}:{case.number}:{case.seed}'\n",
        flush=True,
    )


def report(tallies: dict[str, Tally], families: dict[str, Family], folder: Path, keep: bool) -> int:
    """Prints the table; the exit status."""
    from research.reports.tables import Column, text_table

    rows = [
        {
            "family": name,
            "tried": tally.tried,
            "held": sum(tally.outcomes.values()),
            "failed": len(tally.failures),
            "how": ", ".join(f"{count} {how}" for how, count in sorted(tally.outcomes.items())),
            "promise": families[name].summary,
        }
        for name, tally in tallies.items()
    ]
    print(text_table(rows, [Column(key, key) for key in rows[0]]))
    failed = any(tally.failures for tally in tallies.values())
    if not failed and not keep:
        shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    signals.end_program("torture")
    sys.exit(main())
