"""Every method on one base and one task: a rate sweep of its own, then three seeds, one table.

    python -m experiments.methods [--workdir runs/methods] [--only lora dora] [--dry-run]

The base is imported once. Each form of configs/methods/smollm2.py is screened on a few steps at
three rates, by held-out loss, and the sweep goes on past an edge of the grid that was best. The
best rate is confirmed with three other seeds (of start, order and dropout), and those three models
are put to the tasks. Every stage is a command of its own and a stage that is finished is not run
again, so the study can be stopped at any time. Results: WORKDIR/results.json, from which
`python -m experiments.methods.table` writes the committed table and plot.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import shutil
import sys
from pathlib import Path

from configs.methods.smollm2 import FORMS
from research.checkpoint import library_versions
from research.memory import give_back

TRAIN, EVALUATE = "configs/methods/smollm2.py", "configs/methods/evaluate.py"
SCREEN_STEPS, SCREEN_SEED, SEEDS = 20, 0, (1, 2, 3)
EXTENSIONS = 2  # most rates that are added to a grid


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/methods"), metavar="DIR")
    parser.add_argument("--only", nargs="+", choices=FORMS, default=list(FORMS), metavar="FORM")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="SEED")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    arguments = parser.parse_args()
    study = Study(arguments.workdir, arguments.dry_run)
    study.run(arguments.only, arguments.seeds)


class Study:
    """The stages, each left alone if what it makes is there."""

    def __init__(self, folder: Path, dry_run: bool = False):
        self.folder, self.dry_run = folder, dry_run
        self.base = folder / "base"

    def start(self, form: str) -> Path:
        """The base that a form is tuned from."""
        kind = FORMS[form].stored
        if kind is None:
            return self.base
        small = self.folder / f"base_{kind}"
        if not small.exists():
            self.command(
                "tools.convert", "quantize", "--from", self.base, "--to", kind, "--out", small
            )
        return small

    def run(self, forms: list[str], seeds: tuple[int, ...]) -> None:
        if not self.base.exists():
            self.command("tools.convert", "import", "--from", "smollm2", "--out", self.base)
        for start in dict.fromkeys([self.base, *map(self.start, forms)]):
            self.evaluate(start)
        chosen = {form: self.sweep(form) for form in forms}
        for seed in seeds:  # one seed of all before the next: what is there can be compared
            for form, rate in chosen.items():
                run = self.train(form, rate, seed)
                self.evaluate(run)
                self.collect()

    def sweep(self, form: str) -> float:
        """The rate of the lowest held-out loss; the grid grows while an edge of it is best."""
        rates = sorted(FORMS[form].rates)
        losses: dict[float, float] = {}
        for _ in range(1 + EXTENSIONS):
            for rate in rates:
                if rate not in losses:
                    losses[rate] = self.heldout_loss(
                        self.train(form, rate, SCREEN_SEED, screen=True)
                    )
            best = min(losses, key=losses.__getitem__)
            if self.dry_run or best not in (rates[0], rates[-1]):
                break
            rates = sorted([*rates, float(f"{best * (1 / 3 if best == rates[0] else 3):.0e}")])
        if not self.dry_run:
            print(f"{form}: rate {best:g} of {losses}", flush=True)
        return best

    def train(self, form: str, rate: float, seed: int, screen: bool = False) -> Path:
        run = (
            self.folder
            / form
            / ("screen" if screen else "seed")
            / (f"{rate:g}" if screen else f"{seed}")
        )
        settings = [f"schedule.rate={rate!r}", f"seed={seed}", f"data.seed={seed}"]
        settings += [f"init_from={self.start(form)}"]
        if screen:
            settings += [f"steps={SCREEN_STEPS}"]
        done = (run / "summary.json").exists() and read(run / "summary.json")["finished"]
        if not done:
            overrides = [f"--config.{setting}" for setting in settings]
            self.command(
                "research.train", "--config", f"{TRAIN}:{form}", "--workdir", run, *overrides
            )
            if not self.dry_run:  # what has been read is not needed again
                for part in ("checkpoints", "model") if screen else ("checkpoints",):
                    shutil.rmtree(run / part)
        return run

    def heldout_loss(self, run: Path) -> float:
        if self.dry_run:
            return 0.0
        loss = json.loads((run / "summary.json").read_text())["heldout_loss"]
        return float("inf") if loss is None else loss

    def evaluate(self, run: Path) -> None:
        out = self.folder / "answers" / f"{'_'.join(run.relative_to(self.folder).parts)}.json"
        if not out.exists():
            self.command("research.evaluate", "--config", EVALUATE, "--run", run, "--out", out)

    def collect(self) -> None:
        """Everything that the table needs, in one file."""
        if self.dry_run:
            return
        forms = {}
        for form in FORMS:
            runs = sorted((self.folder / form / "seed").glob("*/summary.json"))
            answers = [
                self.folder / "answers" / f"{form}_seed_{path.parent.name}.json" for path in runs
            ]
            done = [pair for pair in zip(runs, answers, strict=True) if pair[1].exists()]
            if not done:
                continue
            screened = sorted((self.folder / form / "screen").glob("*/summary.json"))
            forms[form] = {
                "screen": {path.parent.name: read(path)["heldout_loss"] for path in screened},
                "runs": {run.parent.name: one(read(run), read(given)) for run, given in done},
                "rate": config_of(done[0][0].parent)["schedule"]["rate"],
                "method": config_of(done[0][0].parent)["method"],
                "bytes": stored_bytes(done[0][0].parent / "model"),
            }
        bases = sorted((self.folder / "answers").glob("base*.json"))
        measured = ("bits_per_byte", "quality", "fingerprint")
        results = {
            "command": shlex.join(["python", "-m", "experiments.methods", *sys.argv[1:]]),
            "versions": library_versions(),
            "bases": {path.stem: {what: read(path)[what] for what in measured} for path in bases},
            "forms": forms,
        }
        (self.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")

    def command(self, module: str, *arguments: object) -> None:
        """Runs one program of the project, in this process: a start takes as long as ten steps."""
        words = list(map(str, arguments))
        print(f"\n$ python -m {shlex.join([module, *words])}", flush=True)
        if not self.dry_run:
            importlib.import_module(module).main(words)
            give_back(compiled=True)  # half a gigabyte a run and more


def one(summary: dict, answers: dict) -> dict:
    """What one run shows."""
    kept = (
        *("trainable_parameters", "program_bytes", "flops", "loss", "heldout_loss", "seconds"),
        "quickest_step_seconds",
    )
    measured = {name: answers[name] for name in ("quality", "bits_per_byte", "answers")}
    return {name: summary[name] for name in kept} | measured


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def config_of(run: Path) -> dict:
    return read(run / "config.json")


def stored_bytes(folder: Path) -> int:
    """Bytes of the arrays that are kept beside the base."""
    shelves = [path for path in folder.rglob("*") if path.is_file() and "files" not in path.parts]
    return sum(path.stat().st_size for path in shelves)


if __name__ == "__main__":
    main()
