"""Every method on one base and one task: a rate sweep of its own, then three seeds, one table.

    python -m experiments.methods [--workdir runs/methods] [--only lora dora] [--dry-run]

The base is imported once. Each form of configs/methods/smollm2.py, one after the other, is screened
on a few steps at three rates, by held-out loss, and the sweep goes on past an edge of the grid that
was best. The best rate is confirmed with three other seeds (of start, order and dropout), and those
three models are put to the tasks. Every stage is a command of its own and its numbers go to the
results file at once. What that file holds is not run again: a study that was stopped goes on, on
this machine or on another, and to run a form anew is to take it out of the file.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.methods.smollm2 import FORMS
from research import cli
from research.checkpoints.checkpointer import library_versions
from research.runtime.files import write_json
from research.runtime.memory import release_memory

TRAIN, EVALUATE = "configs/methods/smollm2.py", "configs/methods/evaluate.py"
RESULTS = Path(__file__).parent / "results.json"
SCREEN_STEPS, SCREEN_SEED, SEEDS = 20, 0, (1, 2, 3)
STILL = 1e-30  # a rate that moves no weight: such a run's held-out loss is its base's
# what the table needs of a run's summary
SPENT = (
    *("trainable_parameters", "program_bytes", "flops", "loss", "heldout_loss", "seconds"),
    "quickest_step_seconds",
)
EXTENSIONS = 3  # most rates that are added to a grid


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


class Study:
    """The stages, each left alone if the results have its numbers.

    Raises:
      ValueError: the results have a form that is not what its config says now.
    """

    def __init__(self, folder: Path, results: Path, dry_run: bool = False):
        self.folder, self.file, self.dry_run = folder, results, dry_run
        self.base = folder / "base"
        self.made: set[Path] = set()
        self.results: dict[str, Any] = {"bases": {}, "forms": {}}
        if results.exists():
            self.results = read(results)
        for form, kept in self.results["forms"].items():
            if form in FORMS and kept["setting"] != setting(form):
                raise ValueError(
                    f"{results} has {form} as {kept['setting']}, and {TRAIN} says "
                    f"{setting(form)}: take it out of the file, or name another --results"
                )

    def run(self, forms: Sequence[str], seeds: Sequence[int]) -> None:
        for form in forms:
            self.measure_base(FORMS[form].storage)
        for form in forms:
            rate = self.sweep(form)
            for seed in seeds:
                self.confirm(form, rate, seed)
            release_memory(compiled=True)  # programs, which the runs of a form share: gigabytes

    def start(self, stored: str | None) -> Path:
        """The base that a form is tuned from."""
        self.make(self.base, "import", "--from", "smollm2")
        if stored is None:
            return self.base
        small = self.folder / f"base_{stored}"
        self.make(small, "quantize", "--from", self.base, "--to", stored)
        return small

    def make(self, model: Path, *how: object) -> None:
        if model not in self.made and not model.exists():
            self.command("convert", *how, "--out", model)
        self.made.add(model)

    def measure_base(self, stored: str | None) -> None:
        """What a base does before it is tuned; forgetting counts from the one in float32."""
        for kind in dict.fromkeys((None, stored)):
            name = f"base_{kind}" if kind else "base"
            kept = self.results["bases"].setdefault(name, {})
            if "quality" not in kept:
                kept |= self.evaluate(self.start(kind))
                self.keep()
            if "heldout_loss" not in kept:
                form = next(form for form in FORMS if FORMS[form].storage == kind)
                kept["heldout_loss"] = self.screen(form, STILL)
                self.keep()

    def sweep(self, form: str) -> float:
        """The rate of the lowest held-out loss; the grid grows while an edge of it is best."""
        kept = self.results["forms"].setdefault(
            form, {"setting": setting(form), "screen": {}, "runs": {}}
        )
        rates, losses = sorted(FORMS[form].learning_rates), kept["screen"]
        for _ in range(1 + EXTENSIONS):
            for rate in rates:
                if f"{rate:g}" not in losses:
                    losses[f"{rate:g}"] = self.screen(form, rate)
                    self.keep()
            best = min(rates, key=lambda rate: finite(losses[f"{rate:g}"]))
            if self.dry_run or best not in (rates[0], rates[-1]):
                break
            rates = sorted([*rates, float(f"{best * (1 / 3 if best == rates[0] else 3):.0e}")])
        if not self.dry_run:
            print(f"{form}: rate {best:g} of {losses}", flush=True)
        return best

    def screen(self, form: str, rate: float) -> float | None:
        """Held-out loss after a few steps; None is one that is not finite."""
        run = self.folder / form / "screen" / f"{rate:g}"
        summary = self.train(form, rate, SCREEN_SEED, run, f"--config.steps={SCREEN_STEPS}")
        shutil.rmtree(run, ignore_errors=True)  # half a gigabyte, and nothing asks for it
        return summary["heldout_loss"]

    def confirm(self, form: str, rate: float, seed: int) -> None:
        """One run of the table: its cost, what it learnt and what it forgot."""
        kept = self.results["forms"][form]
        if str(seed) in kept["runs"]:
            return
        run = self.folder / form / "seed" / f"{seed}"
        summary = self.train(form, rate, seed, run)
        answers = self.evaluate(run)
        if self.dry_run:
            return
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        kept["runs"][str(seed)] = {name: summary[name] for name in SPENT} | answers
        kept |= {"rate": rate, "bytes": stored_bytes(run / "model")}
        self.keep()

    def train(self, form: str, rate: float, seed: int, run: Path, *more: str) -> dict[str, Any]:
        """The run's summary."""
        start = self.start(FORMS[form].storage)
        numbers = [f"schedule.learning_rate={rate!r}", f"seed={seed}", f"data.seed={seed}"]
        overrides = [f"--config.{setting}" for setting in (*numbers, f"init_from={start}")]
        self.command("train", "--config", f"{TRAIN}:{form}", "--workdir", run, *overrides, *more)
        return {"heldout_loss": 0.0} if self.dry_run else read(run / "summary.json")

    def evaluate(self, run: Path) -> dict[str, Any]:
        """What a model knows of the task, and of text that it was not tuned on."""
        out = self.folder / "answers" / f"{'_'.join(run.relative_to(self.folder).parts)}.json"
        self.command("evaluate", "--config", EVALUATE, "--run", run, "--out", out)
        if self.dry_run:
            return {}
        return {name: read(out)[name] for name in ("quality", "bits_per_byte", "fingerprint")}

    def keep(self) -> None:
        """Everything that the table needs, in one file."""
        if not self.dry_run:
            write_json(self.file, {"versions": library_versions()} | self.results)

    def command(self, command: str, *arguments: object) -> None:
        """Runs one command of `graft`, in this process: a start takes as long as ten steps."""
        words = list(map(str, arguments))
        print(f"\n$ graft {shlex.join([command, *words])}", flush=True)
        if not self.dry_run:
            cli.main([command, *words])
            release_memory()


def setting(form: str) -> dict[str, Any]:
    """What makes a form what it is, but for its rate; as JSON has it."""
    chosen = FORMS[form]
    return json.loads(json.dumps(chosen.method | chosen.overrides | {"stored": chosen.storage}))


def finite(loss: float | None) -> float:
    return math.inf if loss is None else loss


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def stored_bytes(folder: Path) -> int:
    """Bytes of the arrays that are kept beside the base."""
    shelves = [path for path in folder.rglob("*") if path.is_file() and "files" not in path.parts]
    return sum(path.stat().st_size for path in shelves)


if __name__ == "__main__":
    main()
