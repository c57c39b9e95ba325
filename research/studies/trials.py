"""Trials: one run of a study each, under an address that says everything its numbers depend on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.config import cli, paths, schema
from research.config.functions import digest_function
from research.config.suggestions import suggestion
from research.data.sources import SourceConfig, open_source
from research.data.sources.files import File
from research.data.sources.records import Records
from research.evaluation.in_training import evaluation_of
from research.evaluation.tasks import CHOICE, Evaluation
from research.experiment import Experiment
from research.retrieval.retrieve import content_key
from research.studies import measures, ways
from research.studies.addresses import digest, without_defaults
from research.studies.axes import Variant, expand
from research.studies.bases import recipe, teacher_of
from research.studies.budgets import Start, abstract_program, solve, tokens_of
from research.studies.cells import Cell
from research.studies.code import code_hash
from research.studies.study import PROMPTED, TUNED, Stage, Study
from research.training.summary import Summary

# the stage of evaluations of bases before anything is tuned
BEFORE = "before"
# fields of an experiment that change neither its weights nor what is measured at its end; paths
# are in the address as the fingerprints of what lies there
_BESIDE = ("init_from", "tokenizer", "checkpoint", "checks", "log_every", "evaluate_every")

# what keys of the evaluation begin with, in the changes of a study
_ASKS = "evaluation."
# the numbers of a trial's row, beside those of a study's own `measures` and of single texts
_METRICS = (
    *(field.name for field in dataclasses.fields(Summary)),
    *"loss nll accuracy trained_tokens gradient_norm learning_rate heldout_loss".split(),
    *"heldout_bits_per_byte quality bits_per_byte forgetting artifact_bytes questions".split(),
    *"reward_margin preference_accuracy kl absolute_error".split(),
    *"heldout_reward_margin heldout_preference_accuracy heldout_kl heldout_absolute_error".split(),
)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run: where it stands in the study, its config, and its addresses."""

    stage: str
    cell: Cell
    # of the sweep; None without one
    value: float | None
    seed: int
    experiment: Experiment
    # hash of everything that its numbers depend on, without and with the code
    inputs: str
    address: str
    # how it answers (`research.studies.ways`), and what it is asked; None: nothing
    way: str = TUNED
    evaluation: Evaluation | None = None

    @property
    def label(self) -> str:
        value = "" if self.value is None else f" {self.value:g}"
        return f"{self.stage}: {self.cell.label}{value} seed={self.seed}"


class Resolver:
    """Makes the trials of a study: their configs and addresses.

    Raises:
      FileNotFoundError, ValueError: a config, base, tokenizer, source or evaluation that is not
        there, or does not fit; keys that no config has.
    """

    def __init__(self, study: Study, overrides: tuple[str, ...] = ()):
        """Loads the study's config, and the command line's `overrides` over it."""
        self.study = study
        base = cli.load(Experiment, study.config, overrides)
        changes, self._asks = _split(self._full(study.changes))
        self._start = paths.replace(base, changes)
        self.evaluation: Evaluation | None = None
        if study.evaluation is not None:
            self.evaluation = cli.load(Evaluation, study.evaluation)
        self._check_tasks()
        self._check_metric()
        self._before: tuple[Trial, ...] | None = None
        self.cells = tuple(
            dataclasses.replace(cell, point=self._full(cell.point, expanded=False))
            for cell in study.cells()
        )
        self._trials: dict[tuple[Any, ...], Trial] = {}
        self._fingerprints: dict[str, str] = {}
        self._files: list[File] = []  # of the sources with these fingerprints
        self._recipes = {folder: recipe(line) for folder, line in study.bases.items()}
        self._starts: dict[tuple[str | None, str | None], Start] = {}
        self._flops: dict[str, float] = {}
        self._accepted: dict[str, tuple[str, str]] = {}
        self._budgets: dict[tuple[str, Cell], int] = {}
        self.sweep_key = paths.full_path(Experiment, study.sweep.key) if study.sweep else None

    def experiments(self) -> list[Experiment]:
        """The config of every cell, without stages and the sweep; opens nothing."""
        return [self._replace(self._cell_changes(cell), cell) for cell in self.cells]

    def check(self) -> None:
        """Looks at every cell's config, before a base is there or anything runs.

        Raises:
          ValueError: a config that does not fit, or two cells that are the same run.
        """
        stage, labels = self.study.stages[-1], dict[str, str]()
        sweep = {self.sweep_key: 1.0} if self.sweep_key else {}
        for cell in self.cells:
            form = self.study.forms[cell.form]
            changes = self._cell_changes(cell) | self._full(stage.changes)
            if form.is_tuned:
                changes |= sweep
            config = without_defaults(self._replace(changes, cell))
            content = json.dumps([config, form.way, _split(changes)[1]], sort_keys=True)
            if content in labels:
                raise ValueError(
                    f"two cells are the same run: {labels[content]!r} and {cell.label!r}; a form "
                    "or an axis changes nothing"
                )
            labels[content] = cell.label

    def trial(self, stage: Stage, cell: Cell, value: float | None, seed: int) -> Trial:
        """One run of a cell."""
        key = (stage.name, cell, value, seed)
        if key not in self._trials:
            self._trials[key] = self._make(stage, cell, value, seed)
        return self._trials[key]

    def before(self) -> tuple[Trial, ...]:
        """The evaluation of every base that is tuned: what a trial learnt or forgot counts from it.

        None where models are not evaluated, or start at random.
        """
        if self._before is None:
            stage = next((s for s in self.study.stages if s.evaluated), self.study.stages[0])
            bases: dict[str, Trial] = {}
            for cell in self.cells if self.evaluation is not None else ():
                if not self.study.forms[cell.form].is_tuned:
                    continue
                value = next(iter(self.study.sweep_values(cell.form)), None)
                trial = self.trial(stage, cell, value, stage.seeds[0])
                if trial.experiment.init_from is not None:
                    bases.setdefault(_hash_before(self.depends(trial)), trial)
            cells = _base_cells(list(bases.values()))
            self._before = tuple(
                dataclasses.replace(
                    trial,
                    stage=BEFORE,
                    cell=cell,
                    value=None,
                    seed=0,
                    inputs=inputs,
                    address=digest([inputs, code_hash()]),
                )
                for (inputs, trial), cell in zip(bases.items(), cells, strict=True)
            )
        return self._before

    def _make(self, stage: Stage, cell: Cell, value: float | None, seed: int) -> Trial:
        changes = self._cell_changes(cell) | self._full(stage.changes)
        if value is not None and self.sweep_key:
            changes[self.sweep_key] = value
        changes |= dict.fromkeys(self._full(dict.fromkeys(self.study.seed_keys)), seed)
        form = self.study.forms[cell.form]
        if (equal := self.study.equal) and form.is_tuned:
            if (stage.name, cell) not in self._budgets:
                experiment = self._replace(changes, cell)
                self._budgets[stage.name, cell] = solve(
                    equal, experiment, self._open(experiment), cell.label
                )
            changes[paths.full_path(Experiment, equal.by)] = self._budgets[stage.name, cell]
        experiment = self._replace(changes, cell)
        task = self.evaluation if stage.evaluated else None
        asks = self._asks | _split(changes)[1]
        if asks and self.evaluation is None:
            raise ValueError(f"{_ASKS}{next(iter(asks))} is set, but the study has no `evaluation`")
        try:
            evaluation = ways.evaluation_of(form.way, task, experiment, asks)
        except ValueError as error:
            raise ValueError(f"{self.study.evaluation}, {cell.label}: {error}") from None
        inputs = digest(self._depends(experiment, form.way, evaluation))
        return Trial(
            way=form.way,
            evaluation=evaluation,
            stage=stage.name,
            cell=cell,
            value=value,
            seed=seed,
            experiment=experiment,
            inputs=inputs,
            address=digest([inputs, code_hash()]),
        )

    def flops(self, stage: Stage, cell: Cell) -> float:
        """Model FLOPs of one run of a cell, from shapes; none where nothing is trained."""
        if not self.study.forms[cell.form].is_tuned:
            return 0.0
        value = next(iter(self.study.sweep_values(cell.form)), None)
        experiment = self.trial(stage, cell, value, stage.seeds[0]).experiment
        # a token's do not depend on how many there are, nor on the numbers of the step
        plain = {"steps": 1, "schedule.learning_rate": 1.0, "seed": 0, "data.seed": 0}
        content = without_defaults(paths.replace(experiment, plain))
        content["data"] = content["data"] | {"sources": None}
        key = json.dumps(content, sort_keys=True)
        if key not in self._flops:
            self._flops[key] = abstract_program(experiment, self._open(experiment)).flops_per_token
        return self._flops[key] * tokens_of(experiment)

    def depends(self, trial: Trial) -> dict[str, Any]:
        """What the trial's numbers depend on beside the code, as its address has it."""
        return self._depends(trial.experiment, trial.way, trial.evaluation)

    def check_unchanged(self) -> None:
        """Looks whether files are as they were when the addresses were made of their content.

        Raises:
          FileError: one was changed, replaced or removed meanwhile.
        """
        for file in self._files:
            file.check_unchanged()

    def accepted(self, trial: Trial) -> tuple[str, str]:
        """Inputs and address of the trial with the data that the study accepts in place of ours."""
        if not self.study.accepted_data:
            return trial.inputs, trial.address
        if trial.address not in self._accepted:
            content = self.depends(trial)
            for name in {"data", "asked", "asked in training"} & set(content):
                content[name] = {
                    source: self.study.accepted_data.get(source, mark)
                    for source, mark in content[name].items()
                }
            inputs = _hash_before(content) if trial.stage == BEFORE else digest(content)
            self._accepted[trial.address] = (inputs, digest([inputs, code_hash()]))
        return self._accepted[trial.address]

    def _replace(self, changes: Mapping[str, Any], cell: Cell) -> Experiment:
        try:
            return paths.replace(self._start, _split(changes)[0])
        except ValueError as error:
            raise ValueError(f"{self.study.config}, {cell.label}: {error}") from None

    def _cell_changes(self, cell: Cell) -> dict[str, Any]:
        return self._full(self.study.forms[cell.form].changes) | self._full(cell.point)

    def _full(self, changes: Mapping[str, Any], expanded: bool = True) -> dict[str, Any]:
        """With whole paths for keys; of variants, what they change, or (for a table) they."""
        full_keys: dict[str, Any] = {}
        for key, value in (expand(changes) if expanded else changes).items():
            if isinstance(value, Variant):
                full_keys[key] = value
            elif key.startswith(_ASKS):
                name = paths.full_path(Evaluation, key.removeprefix(_ASKS))
                full_keys[_ASKS + name] = value
            else:
                full_keys[paths.full_path(Experiment, key)] = value
        return full_keys

    def _check_tasks(self) -> None:
        """Refuses one name for what is asked in training and what is asked after it."""
        in_training = evaluation_of(self._start)
        if in_training is None or self.evaluation is None:
            return
        names = set(self.evaluation.all_tasks) - {CHOICE}  # which is `quality` in a study's rows
        both = sorted(set(in_training.all_tasks) & names)
        if both:
            raise ValueError(
                f"{both[0]!r} is asked by the config's `evaluation`, in training, and by the "
                "study's: a row has one column of a name; give one of them another, or leave it out"
            )

    def _check_metric(self) -> None:
        metric = self.study.metric
        in_training = evaluation_of(self._start) or Evaluation()
        names = [*in_training.all_tasks, *(self.evaluation.tasks if self.evaluation else ())]
        tasks = tuple(f"{name}/" for name in names)
        for name in (metric, *(getattr(c, "metric", None) for c in self.study.comparisons)):
            is_known = name in _METRICS or str(name).startswith(("bits_per_byte/", *tasks))
            if name is not None and not is_known and not self.study.measures:
                hint = suggestion(name, _METRICS)
                raise ValueError(f"no trial will have the metric {name!r}{hint}")
        if metric.startswith("heldout") and self._start.evaluate_split is None:
            raise ValueError(f"the metric is {metric}: give `evaluate_split` in the config")
        is_evaluated = metric.startswith(("quality", "bits_per_byte"))
        if is_evaluated and self.evaluation is None:
            raise ValueError(f"the metric is {metric}: give the study an `evaluation`")
        for stage in self.study.stages if is_evaluated else ():
            if not stage.evaluated:
                raise ValueError(f"the metric is {metric}: stage {stage.name!r} must be evaluated")

    def _depends(
        self, experiment: Experiment, way: str, evaluation: Evaluation | None
    ) -> dict[str, Any]:
        config = {k: v for k, v in without_defaults(experiment).items() if k not in _BESIDE}
        start = self._open(experiment)
        splits = [(source, source.split) for source in experiment.data.sources]
        if experiment.evaluate_split:
            splits += [(source, experiment.evaluate_split) for source in experiment.data.sources]
        made_base = self._recipes.get(experiment.init_from or "")
        made_tokenizer = self._recipes.get(experiment.tokenizer or "")
        content: dict[str, Any] = {
            "config": config,
            "base": made_base or (start.base.fingerprint if start.base else None),
            "tokenizer": made_tokenizer or made_base or start.tokenizer_fingerprint,
            "data": self._fingerprints_of(splits),
            **teacher_of(experiment, self._recipes),
        }
        if evaluation is not None:
            content["evaluation"] = without_defaults(evaluation)
            for key in ("text", "choice"):  # which say the kind
                content["evaluation"].get(key, {}).pop("kind", None)
            content["asked"] = self._content_of(evaluation)
        if (in_training := evaluation_of(experiment)) is not None:
            content["asked in training"] = self._content_of(in_training)
        if way != TUNED:  # of a run, only where labels and worked examples come from
            unused = set(config) - {"data", "seed"}
            content["config"] = {k: v for k, v in config.items() if k not in unused}
            content["way"] = way
            if way != PROMPTED:
                content |= {"base": None, "tokenizer": None}
        elif self.study.measures:
            content["measures"] = [
                digest_function(name, measures.SETTING) for name in self.study.measures
            ]
        return content

    def _content_of(self, evaluation: Evaluation) -> dict[str, Any]:
        """The content of what an evaluation asks, and of what scores it."""
        splits = [each for task in evaluation.all_tasks.values() for each in task.splits]
        content: dict[str, Any] = self._fingerprints_of(splits)
        for name, task in evaluation.tasks.items():
            content[f"scorers of {name}"] = task.key
            if task.retrieval is not None:
                content[f"retrieved for {name}"] = content_key(task.retrieval)
        return content

    def _open(self, experiment: Experiment) -> Start:
        key = (experiment.init_from, experiment.tokenizer)
        if key not in self._starts:
            self._starts[key] = Start.of(experiment)
        return self._starts[key]

    def _fingerprints_of(self, splits: Iterable[tuple[SourceConfig, str]]) -> dict[str, str]:
        """`source:split` -> fingerprint of its content."""
        marks: dict[str, str] = {}
        for source, split in splits:
            key = json.dumps([schema.to_dict(source), split], sort_keys=True)
            if key not in self._fingerprints:
                content = open_source(source, split)
                self._fingerprints[key] = content.fingerprint
                self._files += content.files if isinstance(content, Records) else ()
            name = f"{source.name}:{split}"
            while marks.get(name, self._fingerprints[key]) != self._fingerprints[key]:
                name += "'"  # of another source of this name: tasks have sources of their own
            marks[name] = self._fingerprints[key]
        return marks


def _split(changes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what changes in the experiment, what in the evaluation)."""
    of_run = {key: value for key, value in changes.items() if not key.startswith(_ASKS)}
    asks = {k.removeprefix(_ASKS): v for k, v in changes.items() if k.startswith(_ASKS)}
    return of_run, asks


def _base_cells(trials: Sequence[Trial]) -> list[Cell]:
    """The line of a table of each trial's base; where a base is asked several things, with what
    tells them apart."""
    cells = []
    for number, trial in enumerate(trials):
        path = trial.experiment.init_from or ""
        points = [t.cell.point for t in trials if t.experiment.init_from == path]
        differing = {
            key: value
            for key, value in trial.cell.point.items()
            if any(point.get(key) != value for point in points)
        }
        cells.append(Cell(f"{Path(path).name}, not tuned", number, differing))
    return cells


def _hash_before(content: Mapping[str, Any]) -> str:
    """Of an evaluation of a base: it depends on nothing that training does."""
    return digest([content[name] for name in ("base", "evaluation", "asked")])
