"""Tuning on growing numbers of labels, as trials of a study: nothing is trained twice.

For each way to tune, the rate is searched with all labels, by the loss on the validation rows; the
best is then trained on fewer of them, for the curve over labels. A study's ledger holds the trials,
and the budget counts the seconds that rows recorded. Models answer as prompts do, and those of
other rates are never asked.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.checkpoints import runs
from research.config import schema
from research.decisions.costs import BuildCost
from research.decisions.problem import Problem
from research.decisions.rows import VALIDATION
from research.decisions.rungs.tuned import Tuning
from research.decisions.templates import PromptTemplate
from research.decisions.ways import Base, Way
from research.generation.responders import Responder
from research.runtime import files, storage
from research.studies import running
from research.studies.axes import axis
from research.studies.ledger import FINISHED, Ledger, Row
from research.studies.results import find_row, forgetting, lookup_in
from research.studies.schedule import Progress, plan
from research.studies.study import Form, Stage, Study, Sweep
from research.studies.trials import Resolver, Trial
from research.text.conversation import from_messages

LABELS = "data.sources[0].max_records"
# Shares of the labels of which the curve is made.
CURVE = (0.25, 0.5, 1.0)
# Fewer labels teach nothing.
FEWEST_LABELS = 8
# Tokens of general text that are read to see what is forgotten.
GENERAL_TOKENS = 20_000
# Tokens by which rows are rounded up.
_MULTIPLE = 32


@dataclasses.dataclass(frozen=True)
class TuningSettings:
    """How long a model is tuned, and what else it is asked."""

    steps: int = 60
    batch_size: int = 8
    # a source with a held-out split, of whose text it is measured how much is forgotten
    general_text: Mapping[str, Any] | None = None
    # what else of the experiment is set, such as {"compute": {"max_scan_layers": 1}}
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A model that was tuned."""

    way: Way
    labels: int
    # of all that it took to train it: rates that were tried, and itself
    seconds: float
    # bits per byte of general text more than the base; None: not measured
    forgetting: float | None


class Tuner:
    """Tunes one base on a problem's labels."""

    def __init__(
        self,
        problem: Problem,
        base: Base,
        template: PromptTemplate,
        folder: Path,
        settings: TuningSettings,
    ):
        """Writes the config of its runs and of their evaluation.

        Args:
          template: how questions are written, for the tuned model too.
          folder: of the study: trials, ledger, configs.

        Raises:
          ValueError, FileNotFoundError: the config does not fit the base.
        """
        self._problem, self._base, self._template = problem, base, template
        self._folder, self._settings = folder, settings
        self._ledger = Ledger(folder)
        self._counted: set[str] = set()
        self._config = _write_config(folder / "config.py", self._experiment())
        self._evaluation: str | None = None
        if settings.general_text is not None:
            text = {"sources": [dict(settings.general_text)], "max_tokens": GENERAL_TOKENS}
            self._evaluation = _write_config(folder / "evaluation.py", {"text": text})
        # seconds of the last trial of each way to tune
        self._last_seconds: dict[str, float] = {}

    def counts(self) -> tuple[int, ...]:
        """The numbers of labels of the curve, the most last."""
        total = len(self._problem.rows.train)
        counts = {max(FEWEST_LABELS, round(share * total)) for share in CURVE}
        return tuple(sorted(count for count in counts if count <= total))

    def plan(self, tuning: Tuning) -> tuple[int, float]:
        """(trials at least, FLOPs of all of them), from shapes; a search may grow by two trials."""
        counts = self.counts()
        study = self._study(tuning, counts[-1:], tuning.rates, growth=0)
        resolver = Resolver(study)
        trials = len(tuning.rates) + len(counts) - 1
        return trials, trials * resolver.flops(study.stages[0], resolver.cells[0])

    def tune(
        self,
        tuning: Tuning,
        has_time: Callable[[float], bool],
        spend: Callable[[float], None],
        say: Callable[[str], None],
    ) -> Iterator[Tuned]:
        """Tunes with all labels, and then with fewer of them; the consumer may stop after any.

        Args:
          has_time: whether so many seconds more are left.
          spend: is given the seconds that each trial took, once.
          say: takes a line for each trial.

        Raises:
          ValueError: no trial finished; says why.
        """
        counts = self.counts()
        study = self._study(tuning, counts[-1:], tuning.rates, growth=2)
        best, seconds = self._run(tuning, study, has_time, spend, say)
        yield self._tuned(tuning, best, counts[-1], seconds)
        assert best.value is not None
        for count in reversed(counts[:-1]):
            if not has_time(self._last_seconds[tuning.name]):
                say(f"{tuning.name}: the budget ended its curve over labels")
                return
            study = self._study(tuning, (count,), (best.value,), growth=0)
            trial, _ = self._run(tuning, study, has_time, spend, say)
            yield self._tuned(tuning, trial, count, seconds)

    def _study(
        self, tuning: Tuning, counts: Sequence[int], rates: Sequence[float], growth: int
    ) -> Study:
        return Study(
            claim=f"how well {tuning.name} answers",
            source="",
            refuted_if="",
            config=self._config,
            forms={tuning.name: Form({"method": dict(tuning.method)})},
            axes=axis(LABELS, *counts),
            sweep=Sweep(tuple(rates), max_growth=growth),
            stages=(Stage("tune", (0,)),),
            evaluation=self._evaluation,
            metric="heldout_loss",
        )

    def _run(
        self,
        tuning: Tuning,
        study: Study,
        has_time: Callable[[float], bool],
        spend: Callable[[float], None],
        say: Callable[[str], None],
    ) -> tuple[Trial, float]:
        """(the best trial of a study, seconds of all its trainings); ends early without time."""
        resolver, growth = Resolver(study), study.sweep is not None and study.sweep.max_growth
        folder = storage.absolute(self._folder)
        while True:
            rows = self._ledger.read()
            progress = plan(resolver, lookup_in(resolver, rows))
            for trial, row in _finished(resolver, rows, progress):
                if trial.address not in self._counted:
                    self._counted.add(trial.address)
                    self._last_seconds[tuning.name] = _seconds(row)
                    spend(_seconds(row))
            if progress.missing and not has_time(max(self._last_seconds.values(), default=0.0)):
                say(f"{tuning.name}: the budget ended the search for its learning rate")
                return self._best(resolver, rows, progress)
            if not progress.missing:
                if any(c.at_edge for each in progress.choices.values() for c in each) and growth:
                    say(f"{tuning.name}: the best learning rate lies at an edge of those tried")
                return self._best(resolver, rows, progress)
            running.run(
                resolver,
                self._ledger,
                folder,
                keep_models=True,
                trials=1,
                report=say,
            )

    def _best(
        self, resolver: Resolver, rows: Mapping[str, Row], progress: Progress
    ) -> tuple[Trial, float]:
        pairs = [
            (trial, row)
            for trial, row in _finished(resolver, rows, progress)
            if trial.value is not None and row["status"] == FINISHED
        ]
        if not pairs:
            errors = [row["error"] for _, row in _finished(resolver, rows, progress)]
            raise ValueError(errors[-1] if errors else "the budget was spent")
        best, _ = min(pairs, key=lambda pair: (float(pair[1]["heldout_loss"]), pair[0].value))
        self._forget_models([trial for trial, _ in pairs if trial is not best])
        return best, sum(float(row["seconds"]) for _, row in pairs)

    def _forget_models(self, trials: Sequence[Trial]) -> None:
        """Removes the weights of trials that no way is made of: their rows stay."""
        for trial in trials:
            for name in ("checkpoints", "model"):
                workdir = self._folder / "trials" / trial.address / "run"
                files.remove(workdir / name, workdir)

    def _tuned(self, tuning: Tuning, trial: Trial, labels: int, seconds: float) -> Tuned:
        row = self._ledger.read()[trial.address]
        path = str(self._folder / "trials" / trial.address / "run")
        own = float(row["seconds"])
        total = seconds if labels == self.counts()[-1] else seconds + own
        name = f"{tuning.name}, {labels:,} labels"
        way = Way(
            name=name,
            rung=tuning.name,
            base=Base(name, path, has_template=True),
            template=self._template,
            build=BuildCost(
                labels=labels,
                seconds=total,
                flops=float(row["flops"]),
                trainable_parameters=int(row["trainable_parameters"]),
                artifact_bytes=int(row["artifact_bytes"]),
            ),
        )
        return Tuned(way, labels, total, row.get("forgetting"))

    def _experiment(self) -> dict[str, Any]:
        """The config of a run, as JSON."""
        template, is_chat = self._template, self._is_chat()
        # the delimiter is part of the template where a model reads one text
        objective: dict[str, Any] = {"kind": "chat"}
        if not is_chat:
            objective = {"kind": "supervised", "template": f"{{prompt}}{template.delimiter}"}
        steps = self._settings.steps
        experiment: dict[str, Any] = {
            "steps": steps,
            "init_from": self._base.path,
            "data": {
                "sources": [schema.to_dict(self._problem.source(template.format()))],
                "objective": objective,
                "sequence_length": self._longest(),
                "batch_size": self._settings.batch_size,
            },
            "optimizer": {"name": "adamw"},
            "schedule": {"learning_rate": 1e-3, "warmup": max(1, steps // 10)},
            "evaluate_split": VALIDATION,
            # the rows share nothing, and the template is ours on purpose
            "checks": {"other_template": True},
            "log_every": max(1, steps // 10),
        }
        return experiment | dict(self._settings.changes)

    def _is_chat(self) -> bool:
        return Responder(runs.open_run(self._base.path)).reads_conversations

    def _longest(self) -> int:
        """Tokens of a row that holds the longest example."""
        run = runs.open_run(self._base.path)
        responder, tokenizer = Responder(run), run.tokenizer
        text = self._template.format()
        longest = 0
        rows = self._problem.rows
        for record in (*rows.train, *rows.validation, *rows.test):
            message = {"role": "user", "content": text.format_map(record)}
            prompt, _ = responder.prompt(from_messages([message]))
            answer = tokenizer.encode(self._template.delimiter + record["completion"])
            # a template may end an answer with a token or two, and Supervised keeps 16 free for it
            longest = max(longest, len(prompt) + max(len(answer), 16) + 8)
        return -(-longest // _MULTIPLE) * _MULTIPLE


def _finished(
    resolver: Resolver, rows: Mapping[str, Row], progress: Progress
) -> Iterator[tuple[Trial, dict[str, Any]]]:
    """Trials that are over, with their rows."""
    for trial in progress.trials:
        row = find_row(resolver, rows, trial)
        if row is not None:
            yield trial, {**row, **forgetting(resolver, rows, row)}


def _seconds(row: Mapping[str, Any]) -> float:
    return float(row.get("seconds") or 0.0)


def _write_config(path: Path, content: Mapping[str, Any]) -> str:
    """Writes a config file that gives the content; its path."""
    text = f"import json\n\n\ndef get_config():\n    return json.loads({json.dumps(content)!r})\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        files.atomic_write(path, text)
    return str(path)
