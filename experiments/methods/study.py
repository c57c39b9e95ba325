"""The study's stages: import and quantize the base, sweep rates, confirm the best with seeds."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.methods.smollm2 import FORMS
from experiments.methods.results import BaseResult, FormResult, RunResult, Scores, StudyResults
from research import cli
from research.runtime.memory import release_memory

TRAIN_CONFIG, EVALUATE_CONFIG = "configs/methods/smollm2.py", "configs/methods/evaluate.py"
RESULTS = Path(__file__).parent / "results.json"
SCREEN_STEPS, SCREEN_SEED, SEEDS = 20, 0, (1, 2, 3)
NO_RATE = 1e-30  # it moves no weight: such a run's held-out loss is its base's
MAX_EXTENSIONS = 3  # rates that are added to a grid


class Study:
    """The stages of the study; a stage whose numbers the results have is not run again.

    Raises:
      ValueError: the results have a form that is not what its config says now.
    """

    def __init__(self, folder: Path, results_file: Path, dry_run: bool = False):
        self.folder, self.results_file, self.dry_run = folder, results_file, dry_run
        self.base = folder / "base"
        self.converted_models: set[Path] = set()
        self.results = StudyResults()
        if results_file.exists():
            self.results = StudyResults.load(results_file)
        for form, result in self.results.forms.items():
            if form in FORMS and result.setting != setting(form):
                raise ValueError(
                    f"{results_file} has {form} as {result.setting}, and {TRAIN_CONFIG} says "
                    f"{setting(form)}: take it out of the file, or name another --results"
                )

    def run(self, forms: Sequence[str], seeds: Sequence[int]) -> None:
        """Measures the bases, then sweeps and confirms each form."""
        for form in forms:
            self.measure_base(FORMS[form].storage)
        for form in forms:
            rate = self.sweep(form)
            for seed in seeds:
                self.confirm(form, rate, seed)
            release_memory(compiled=True)  # programs, which the runs of a form share: gigabytes

    def start(self, storage: str | None) -> Path:
        """The base that a form is tuned from, converted if it was not."""
        self.convert(self.base, "import", "--from", "smollm2")
        if storage is None:
            return self.base
        quantized_base = self.folder / f"base_{storage}"
        self.convert(quantized_base, "quantize", "--from", self.base, "--to", storage)
        return quantized_base

    def convert(self, model: Path, *arguments: object) -> None:
        """Runs `graft convert` unless the model is there."""
        if model not in self.converted_models and not model.exists():
            self.command("convert", *arguments, "--out", model)
        self.converted_models.add(model)

    def measure_base(self, storage: str | None) -> None:
        """Scores of a base before it is tuned; forgetting counts from the one in float32."""
        for kind in dict.fromkeys((None, storage)):
            name = f"base_{kind}" if kind else "base"
            result = self.results.bases.setdefault(name, BaseResult())
            if result.scores is None:
                result.scores = self.evaluate(self.start(kind))
                self.save()
            if result.heldout_loss is None:
                form = next(form for form in FORMS if FORMS[form].storage == kind)
                result.heldout_loss = self.screen(form, NO_RATE)
                self.save()

    def sweep(self, form: str) -> float:
        """The rate of the lowest held-out loss; the grid grows while an edge of it is best."""
        result = self.results.forms.setdefault(form, FormResult(setting(form)))
        rates, losses = sorted(FORMS[form].learning_rates), result.screen
        for _ in range(1 + MAX_EXTENSIONS):
            for rate in rates:
                if f"{rate:g}" not in losses:
                    losses[f"{rate:g}"] = self.screen(form, rate)
                    self.save()
            best = min(rates, key=lambda rate: or_infinity(losses[f"{rate:g}"]))
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
        shutil.rmtree(run, ignore_errors=True)  # half a gigabyte that nothing needs again
        return summary["heldout_loss"]

    def confirm(self, form: str, rate: float, seed: int) -> None:
        """One run of the table: its cost and its scores."""
        result = self.results.forms[form]
        if str(seed) in result.runs:
            return
        run = self.folder / form / "seed" / f"{seed}"
        summary = self.train(form, rate, seed, run)
        scores = self.evaluate(run)
        if scores is None:
            return
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        result.runs[str(seed)] = RunResult.from_summary(summary, scores)
        result.rate, result.bytes = rate, stored_bytes(run / "model")
        self.save()

    def train(self, form: str, rate: float, seed: int, run: Path, *more: str) -> dict[str, Any]:
        """Trains a form; returns the run's summary."""
        start = self.start(FORMS[form].storage)
        settings = [f"schedule.learning_rate={rate!r}", f"seed={seed}", f"data.seed={seed}"]
        overrides = [f"--config.{each}" for each in (*settings, f"init_from={start}")]
        config = f"{TRAIN_CONFIG}:{form}"
        self.command("train", "--config", config, "--workdir", run, *overrides, *more)
        return {"heldout_loss": 0.0} if self.dry_run else read_json(run / "summary.json")

    def evaluate(self, run: Path) -> Scores | None:
        """Scores of a model; None in a dry run."""
        out = self.folder / "answers" / f"{'_'.join(run.relative_to(self.folder).parts)}.json"
        self.command("evaluate", "--config", EVALUATE_CONFIG, "--run", run, "--out", out)
        return None if self.dry_run else Scores.from_json(read_json(out))

    def save(self) -> None:
        if not self.dry_run:
            self.results.save(self.results_file)

    def command(self, command: str, *arguments: object) -> None:
        """Runs one command of `graft`, in this process: a start takes as long as ten steps."""
        options = list(map(str, arguments))
        print(f"\n$ graft {shlex.join([command, *options])}", flush=True)
        if not self.dry_run:
            cli.main([command, *options])
            release_memory()


def setting(form: str) -> dict[str, Any]:
    """The config of a form, but for its rate, as JSON has it."""
    content = FORMS[form].method | FORMS[form].overrides | {"stored": FORMS[form].storage}
    return json.loads(json.dumps(content))


def or_infinity(loss: float | None) -> float:
    return math.inf if loss is None else loss


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def stored_bytes(folder: Path) -> int:
    """Bytes of the arrays that are kept beside the base."""
    files = [path for path in folder.rglob("*") if path.is_file() and "files" not in path.parts]
    return sum(path.stat().st_size for path in files)
