"""Trials of a decision: studies on one ledger, run one by one as long as there is time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from research.runtime import files, storage
from research.studies import running
from research.studies.ledger import FINISHED, Ledger, Row
from research.studies.results import find_row, forgetting, lookup_in
from research.studies.schedule import Progress, plan
from research.studies.study import Study
from research.studies.trials import Resolver, Trial


class Clock(NamedTuple):
    """What there is to spend, and who listens."""

    # whether so many seconds more are left
    has_time: Callable[[float], bool]
    # is given the seconds that each trial took, once
    spend: Callable[[float], None]
    # takes a line for each trial
    say: Callable[[str], None]


class Best(NamedTuple):
    """The best trial of a study, by the loss on the validation rows."""

    trial: Trial
    row: Row
    # of all its trials
    seconds: float


class Trials:
    """The trials of some studies in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._ledger = Ledger(folder)
        self._counted: set[str] = set()
        # of the longest trial so far
        self.longest_seconds = 0.0

    def run_dir(self, trial: Trial) -> str:
        """The folder of a trial's run."""
        return str(self.folder / "trials" / trial.address / "run")

    def best(self, study: Study, clock: Clock) -> Best:
        """Runs what is missing of a study of one stage; the models of other trials are removed.

        Raises:
          ValueError: no trial finished; says why.
        """
        resolver, label = Resolver(study), next(iter(study.forms))
        growth = study.sweep.max_growth if study.sweep else 0
        while True:
            rows = self._ledger.read()
            progress = plan(resolver, lookup_in(resolver, rows))
            for trial, row in _finished(resolver, rows, progress):
                if trial.address not in self._counted:
                    self._counted.add(trial.address)
                    seconds = float(row.get("seconds") or 0.0)
                    self.longest_seconds = max(self.longest_seconds, seconds)
                    clock.spend(seconds)
            if progress.missing and not clock.has_time(self.longest_seconds):
                clock.say(f"{label}: the budget ended the search for its learning rate")
                return self._choose(resolver, rows, progress)
            if not progress.missing:
                if growth and any(c.at_edge for each in progress.choices.values() for c in each):
                    clock.say(f"{label}: the best learning rate lies at an edge of those tried")
                return self._choose(resolver, rows, progress)
            running.run(
                resolver,
                self._ledger,
                storage.absolute(self.folder),
                keep_models=True,
                trials=1,
                report=clock.say,
            )

    def _choose(self, resolver: Resolver, rows: Mapping[str, Row], progress: Progress) -> Best:
        over = [
            (trial, row)
            for trial, row in _finished(resolver, rows, progress)
            if trial.value is not None
        ]
        pairs = [(trial, row) for trial, row in over if row["status"] == FINISHED]
        if not pairs:
            errors = [row["error"] for _, row in over]
            raise ValueError(errors[-1] if errors else "the budget was spent")
        best, row = min(pairs, key=lambda pair: (float(pair[1]["heldout_loss"]), pair[0].value))
        self._remove_models([trial for trial, _ in pairs if trial is not best])
        return Best(best, row, sum(float(each["seconds"]) for _, each in pairs))

    def _remove_models(self, trials: Sequence[Trial]) -> None:
        """Removes the weights of trials that no way is made of: their rows stay."""
        for trial in trials:
            for name in ("checkpoints", "model"):
                workdir = Path(self.run_dir(trial))
                files.remove(workdir / name, workdir)


def write_config(path: Path, content: Mapping[str, Any]) -> str:
    """Writes a config file that gives the content; its path."""
    text = f"import json\n\n\ndef get_config():\n    return json.loads({json.dumps(content)!r})\n"
    files.write_if_other(path, text)
    return str(path)


def _finished(
    resolver: Resolver, rows: Mapping[str, Row], progress: Progress
) -> Iterator[tuple[Trial, dict[str, Any]]]:
    """Trials that are over, with their rows."""
    for trial in progress.trials:
        row = find_row(resolver, rows, trial)
        if row is not None:
            yield trial, {**row, **forgetting(resolver, rows, row)}
