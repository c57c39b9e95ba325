"""What a study is: a claim, forms and axes of one config, a sweep, stages and a comparison.

A study is a folder `experiments/NAME/` with a `study.py` whose `get_study()` returns one of these.
Nothing here runs anything: `research.studies.schedule` says which trials it needs, given the
results so far.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from research.config import schema
from research.config.functions import split_function
from research.config.user_code import errors_with_line, load_file
from research.evaluation.baselines import BASELINES
from research.studies.axes import SEED_KEYS, Axes, expand, variant_names
from research.studies.cells import Cell
from research.studies.comparisons import AnyComparison, Comparison, Ratio, Trend
from research.studies.located import located

FILE = "study.py"
TUNED, PROMPTED = "tuned", "prompted"
# what a form may do with its labels
WAYS = (TUNED, PROMPTED, *BASELINES)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A search over one positive number for each cell; it grows while its best lies at an edge."""

    # the values that it begins with, such as learning rates; a form may have its own
    values: tuple[float, ...] = ()
    key: str = "schedule.learning_rate"
    # what the outermost value is multiplied by, or divided by, to grow
    factor: float = 3.0
    # most values that are added to a cell's
    max_growth: int = 4

    def __post_init__(self) -> None:
        check_values(self.values, "sweep.values")
        if not self.factor > 1:
            raise ValueError(f"sweep.factor must be over 1, not {self.factor}")
        if self.max_growth < 0:
            raise ValueError(f"sweep.max_growth must not be negative, not {self.max_growth}")

    def extend(self, values: tuple[float, ...], best: float) -> tuple[float, ...]:
        """The values with one more beyond the edge at which `best` lies; the same inside."""
        if best == min(values):
            return (self._round(best / self.factor), *values)
        return (*values, self._round(best * self.factor)) if best == max(values) else values

    def _round(self, value: float) -> float:
        """As many digits as tell neighbours apart: a grid stays readable as it grows."""
        return float(f"{value:.0e}" if self.factor >= 2 else f"{value:.2e}")


@dataclasses.dataclass(frozen=True)
class Form:
    """One line of a study's table: what it changes in the config."""

    # keys that begin with `evaluation.` are of the evaluation's config: {"evaluation.shots": 3}
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # the values that its sweep begins with; empty: those of the study's sweep
    values: tuple[float, ...] = ()
    # what it does with the labels: a run that is "tuned", a base that is "prompted", or a
    # classifier of `research.evaluation.baselines`; only the first has a sweep and is screened
    way: str = TUNED

    def __post_init__(self) -> None:
        check_values(self.values, "a form's values")
        if self.way not in WAYS:
            raise ValueError(f"a form is {self.way!r}; there are: {', '.join(WAYS)}")
        if not self.is_tuned and self.values:
            raise ValueError(f"a form that is {self.way} has no sweep: leave out `values`")

    @property
    def is_tuned(self) -> bool:
        return self.way == TUNED


@dataclasses.dataclass(frozen=True)
class Stage:
    """Trials of every cell that is left, over some seeds; then the best go on."""

    name: str
    seeds: tuple[int, ...]
    # what it changes in the config, such as {"steps": 40} to screen
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # share of the cells that go on to the next stage, the best by the metric (halving: 0.5)
    keep: float = 1.0
    # how many values of the sweep go on in each of them
    keep_values: int = 1
    # whether its models are evaluated, where the study has an evaluation
    evaluated: bool = True

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"stage {self.name!r}: give one or more different seeds")
        if not 0 < self.keep <= 1:
            raise ValueError(f"stage {self.name!r}: keep must be over 0 and at most 1")
        if self.keep_values < 1:
            raise ValueError(f"stage {self.name!r}: keep_values must be at least 1")


@dataclasses.dataclass(frozen=True)
class Equal:
    """A budget that every cell meets by one whole number of its config, such as LoRA's rank."""

    # trainable parameters, or model FLOPs of the whole run
    amount: float
    of: Literal["parameters", "flops"] = "parameters"
    # the key that is solved for, in the stage's config
    by: str = "method.rank"
    # how far from the budget a cell may be, as a share of it
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        if not (self.amount > 0 and self.tolerance > 0):
            raise ValueError("a budget and its tolerance must be positive")


@dataclasses.dataclass(frozen=True)
class Study:
    """A study; see the module.

    A cell is a form at one point of the axes: a line of the table. Each stage runs its cells with
    every value of the sweep that is left, over its seeds.
    """

    # what is claimed, by whom and where, and what would refute it here
    claim: str
    source: str
    refuted_if: str
    # the config of a run, FILE[:ARG], and what all trials change in it
    config: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    forms: Mapping[str, Form] = dataclasses.field(default_factory=lambda: {"": Form()})
    axes: Axes = Axes(({},))
    # `(form, point) -> whether it runs`: which cells of forms times axes there are; None: all
    only: Callable[[str, Mapping[str, Any]], bool] | None = None
    sweep: Sweep | None = None
    stages: tuple[Stage, ...] = (Stage("confirm", seeds=(0, 1, 2)),)
    equal: Equal | None = None
    # what a seed moves: the start, dropout and the order of data; `data.sources[0].sample_seed`
    # beside them draws other records
    seed_keys: tuple[str, ...] = SEED_KEYS
    # folder of a base (or file of a tokenizer) that configs name -> the `graft` command line that
    # makes it, in order
    bases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # the config of `graft evaluate`, FILE[:ARG], for the trained models; None: not evaluated
    evaluation: str | None = None
    # FILE:FUNCTION each, asked of every tuned model: `(run, experiment) -> {column: number}`
    measures: tuple[str, ...] = ()
    # FILE:FUNCTION, sections of the page of its own: `(trials) -> [Answer]` (see `answers.py`)
    answers: str | None = None
    # what cells and values are chosen by: a number of a trial's row
    metric: str = "heldout_loss"
    goal: Literal["lowest", "highest"] = "lowest"
    # what is judged: Comparison, Ratio, Trend
    comparisons: tuple[AnyComparison, ...] = ()
    # hashes of older code whose results count as those of the code now (see `code.py`)
    accepted_code: tuple[str, ...] = ()
    # `source:split` -> fingerprint of other data whose results count as those of the data now, such
    # as a machine's own texts that no other machine has
    accepted_data: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.forms or not self.stages:
            raise ValueError("a study needs at least one form and one stage")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have the same name: {names}")
        if self.evaluation and not any(stage.evaluated for stage in self.stages):
            raise ValueError("the study has an `evaluation`, and no stage is evaluated")
        tuned = {name: form for name, form in self.forms.items() if form.is_tuned}
        valueless = [name for name, form in tuned.items() if not form.values]
        if self.sweep is None and len(valueless) < len(tuned):
            raise ValueError("a form has values, but the study has no sweep")
        if self.sweep and not self.sweep.values and valueless:
            raise ValueError(f"the sweep has no values for the form {valueless[0]!r}")
        for comparison in self.comparisons:
            if isinstance(comparison, Trend):
                comparison.series(self.cells())
            elif isinstance(comparison, Comparison):
                comparison.groups(self.cells())
            else:
                comparison.pairs(self.cells())
            if self.sweep is None and (isinstance(comparison, Ratio) or _is_of_best(comparison)):
                raise ValueError(f"{comparison.text}: the study has no sweep")
        if self.answers is not None:
            split_function(self.answers, "answers")
        self._check_keys()

    def _check_keys(self) -> None:
        """Raises ValueError where two parts of a study set one key."""
        for form in self.forms.values():
            parts: list[tuple[str, Mapping[str, Any]]] = [
                ("a form", form.changes),
                ("the axes", expand(self.axes.points[0])),
                ("the sweep", {self.sweep.key: None} if self.sweep else {}),
                ("`equal`", {self.equal.by: None} if self.equal else {}),
            ]
            owners: dict[str, str] = {}
            for owner, keys in parts:
                for key in keys:
                    if key in owners:
                        raise ValueError(f"{owners[key]} and {owner} both set {key!r}")
                    owners[key] = owner

    def to_dict(self) -> dict[str, Any]:
        """What it sets, as plain JSON types, for its page.

        `only` is code: the cells that it leaves are in the table.
        """
        whole = dataclasses.replace(self, only=None)
        names = [
            field.name
            for field in dataclasses.fields(self)
            if getattr(whole, field.name) != field.default
        ]
        content = schema.to_dict(whole)
        return {name: content[name] for name in names}

    def cells(self) -> tuple[Cell, ...]:
        """Every form at every point of the axes, whose keys are as the study writes them."""
        cells = tuple(
            Cell(form, number, point)
            for form in self.forms
            for number, point in enumerate(self.axes)
            if self.only is None or self.only(form, variant_names(point))
        )
        if not cells:
            raise ValueError("`only` leaves no cell")
        return cells

    def sweep_values(self, form: str) -> tuple[float, ...]:
        """The values that the sweep begins with for a form, in order; none without a sweep."""
        if self.sweep is None or not self.forms[form].is_tuned:
            return ()
        return tuple(sorted(self.forms[form].values or self.sweep.values))


def _is_of_best(comparison: AnyComparison) -> bool:
    return isinstance(comparison, Trend) and comparison.of == "best"


def load(folder: str | Path) -> Study:
    """The study of a folder, or of a file.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is no study; names the file and the line.
    """
    path = Path(folder)
    file = path if path.suffix == ".py" else path / FILE
    module = load_file(str(file))
    if not hasattr(module, "get_study"):
        raise ValueError(f"{file}: defines no get_study()")
    classes = (Study, Form, Stage, Sweep, Equal, Comparison, Ratio, Trend)
    with errors_with_line(str(file)), located(file, classes):
        study = module.get_study()
    if not isinstance(study, Study):
        raise ValueError(f"{file}: get_study() gives {type(study).__name__}, not a Study")
    return study


def check_values(values: tuple[float, ...], where: str) -> None:
    """Raises ValueError unless all are positive, finite and different."""
    for value in values:
        if not (isinstance(value, int | float) and 0 < value < math.inf):
            raise ValueError(f"{where} must be positive numbers, not {value!r}")
    if len(set(values)) < len(values):
        raise ValueError(f"{where} has a value twice: {values}")
