"""The kinds of tasks, and the config of an evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from research.config.schema import Name, by_kind, one_of
from research.evaluation.choice_task import ChoiceTask
from research.evaluation.generation_task import GenerationTask
from research.evaluation.head_tasks import ClassificationTask, RegressionTask
from research.evaluation.multiple_choice import MultipleChoice
from research.evaluation.question_task import QuestionTask
from research.evaluation.text_task import TextTask
from research.models.cache import CacheKind
from research.sharding import MeshConfig

TASKS: dict[str, type[QuestionTask]] = by_kind(
    TextTask, ChoiceTask, GenerationTask, MultipleChoice, ClassificationTask, RegressionTask
)
# One of them, told apart by its `kind`.
AnyTask: Any = one_of(TASKS.values())

# What the tasks are called that have a key of their own.
TEXT, CHOICE = "bits_per_byte", "choice"
_KEYS = {TEXT: "text", CHOICE: "choice"}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Config of `graft evaluate`: the tasks, and the mesh of the model."""

    # short for a task of kind "text" that is called bits_per_byte
    text: TextTask | None = None
    # short for one of kind "choice" that is called choice
    choice: ChoiceTask | None = None
    # what is asked, by name
    tasks: Mapping[Name, AnyTask] = dataclasses.field(default_factory=dict)
    # how devices are arranged: each holds the whole model unless mesh.fsdp or mesh.tensor shares it
    mesh: MeshConfig = MeshConfig()
    # how keys and values of written answers are stored; None: in the type that is computed in
    cache_dtype: CacheKind | None = None

    def __post_init__(self) -> None:
        for name in (TEXT, CHOICE):
            if name in self.tasks:
                raise ValueError(
                    f"tasks.{name}: the config's {_KEYS[name]!r} has this name; choose another"
                )

    @property
    def short_tasks(self) -> dict[str, QuestionTask]:
        """Those that have a key of their own, by name."""
        by_name = {TEXT: self.text, CHOICE: self.choice}
        return {name: task for name, task in by_name.items() if task is not None}

    @property
    def all_tasks(self) -> dict[str, QuestionTask]:
        """Everything that is asked, by name."""
        return {**self.short_tasks, **self.tasks}

    def path_of(self, name: str) -> str:
        """Where a task stands in the config."""
        return _KEYS.get(name, f"tasks.{name}")
