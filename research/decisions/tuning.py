"""Tuning on growing numbers of labels, as trials of a study: nothing is trained twice.

For each way to tune, the rate is searched with all labels, by the loss on the validation rows; the
best is then trained on fewer of them, for the curve over labels. A study's ledger holds the trials,
and the budget counts the seconds that rows recorded. Models answer as prompts do, and those of
other rates are never asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.checkpoints import runs
from research.config import schema
from research.decisions.costs import BuildCost
from research.decisions.problem import Problem
from research.decisions.rows import VALIDATION
from research.decisions.rungs.tuned import Tuning
from research.decisions.templates import PromptTemplate
from research.decisions.trials import Best, Clock, Trials, write_config
from research.decisions.ways import Base, Way
from research.generation.responders import Responder
from research.studies.axes import axis
from research.studies.study import Form, Stage, Study, Sweep
from research.studies.trials import Resolver
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

    steps: int = 32
    batch_size: int = 8
    # a source with a held-out split, of whose text it is measured how much is forgotten
    general_text: Mapping[str, Any] | None = None
    # what else of the experiment is set, such as {"compute": {"max_scan_layers": 1}}
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # learning rates of domain pretraining, and its steps
    pretraining_rates: tuple[float, ...] = (1e-4, 3e-4)
    pretraining_steps: int = 32


@dataclasses.dataclass(frozen=True)
class Start:
    """Where tuning starts."""

    # the model that it is of: how questions are put to it
    base: Base
    # the run with the first weights; empty: the base's own
    path: str = ""
    # what names of ways begin with
    prefix: str = ""
    # what it took to make it from the base
    seconds: float = 0.0
    flops: float = 0.0

    @property
    def init_from(self) -> str:
        return self.path or self.base.path


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A model that was tuned."""

    way: Way
    # bits per byte of general text more than where it started; None: not measured
    forgetting: float | None


class Tuner:
    """Tunes a model on a problem's labels."""

    def __init__(
        self,
        problem: Problem,
        start: Start,
        template: PromptTemplate,
        folder: Path,
        settings: TuningSettings,
    ):
        """Writes the config of its runs and of their evaluation.

        Args:
          template: how questions are written, for the tuned model too.
          folder: of the studies: trials, ledger, configs.

        Raises:
          ValueError, FileNotFoundError: the config does not fit the base.
        """
        self._problem, self._start, self._template = problem, start, template
        self._settings, self._trials = settings, Trials(folder)
        self._config = write_config(folder / "config.py", self._experiment())
        self._evaluation: str | None = None
        if settings.general_text is not None:
            text = {"sources": [dict(settings.general_text)], "max_tokens": GENERAL_TOKENS}
            self._evaluation = write_config(folder / "evaluation.py", {"text": text})

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

    def tune(self, tuning: Tuning, clock: Clock) -> Iterator[Tuned]:
        """Tunes with all labels, and then with fewer of them; the consumer may stop after any.

        Raises:
          ValueError: no trial finished; says why.
        """
        counts = self.counts()
        # the rate in the middle first: there may be no time for others
        middle = tuning.rates[len(tuning.rates) // 2]
        self._trials.best(self._study(tuning, counts[-1:], (middle,), growth=0), clock)
        study = self._study(tuning, counts[-1:], tuning.rates, growth=2)
        best = self._trials.best(study, clock)
        yield self._tuned(tuning, best, counts[-1], best.seconds)
        assert best.trial.value is not None
        for count in reversed(counts[:-1]):
            if not clock.has_time(self._trials.longest_seconds):
                clock.say(f"{tuning.name}: the budget ended its curve over labels")
                return
            study = self._study(tuning, (count,), (best.trial.value,), growth=0)
            point = self._trials.best(study, clock)
            yield self._tuned(tuning, point, count, best.seconds + point.seconds)

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

    def _tuned(self, tuning: Tuning, best: Best, labels: int, seconds: float) -> Tuned:
        start, row = self._start, best.row
        name = f"{start.prefix}{tuning.name}, {labels:,} labels"
        build = BuildCost(
            labels=labels,
            seconds=start.seconds + seconds,
            flops=start.flops + float(row["flops"]),
            trainable_parameters=int(row["trainable_parameters"]),
            artifact_bytes=int(row["artifact_bytes"]),
        )
        # its own template stands between question and answer
        base = Base(name, self._trials.run_dir(best.trial), has_template=True)
        way = Way(name, f"{start.prefix}{tuning.name}", base, self._template, build=build)
        return Tuned(way, row.get("forgetting"))

    def _experiment(self) -> dict[str, Any]:
        """The config of a run, as JSON."""
        template, steps = self._template, self._settings.steps
        objective: dict[str, Any] = {"kind": "chat"}
        if not Responder(runs.open_run(self._start.base.path)).reads_conversations:
            objective = {"kind": "supervised", "template": f"{{prompt}}{template.delimiter}"}
        experiment: dict[str, Any] = {
            "steps": steps,
            "init_from": self._start.init_from,
            "data": {
                "sources": [schema.to_dict(self._problem.source(template.format()))],
                "objective": objective,
                "sequence_length": self._longest(),
                "batch_size": self._settings.batch_size,
            },
            "schedule": {"learning_rate": 1e-3, "warmup": max(1, steps // 10)},
            "evaluate_split": VALIDATION,
            # the template is ours on purpose
            "checks": {"other_template": True},
            "log_every": max(1, steps // 10),
        }
        return experiment | dict(self._settings.changes)

    def _longest(self) -> int:
        """Tokens of a row that holds the longest example."""
        run = runs.open_run(self._start.base.path)
        responder, tokenizer = Responder(run), run.tokenizer
        text, rows, longest = self._template.format(), self._problem.rows, 0
        for record in (*rows.train, *rows.validation, *rows.test):
            message = {"role": "user", "content": text.format_map(record)}
            prompt, _ = responder.prompt(from_messages([message]))
            answer = tokenizer.encode(self._template.delimiter + record["completion"])
            # a template may end an answer with a token or two, and Supervised keeps 16 free for it
            longest = max(longest, len(prompt) + max(len(answer), 16) + 8)
        return -(-longest // _MULTIPLE) * _MULTIPLE
