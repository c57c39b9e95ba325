"""Tasks of lm-evaluation-harness, asked of any run; results as those of our own tasks."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from research.checkpoints.runs import Run
from research.config.suggestions import suggestion
from research.evaluation.lm_eval_folder import check_folder
from research.evaluation.questions import digest
from research.evaluation.report import loaded_model
from research.evaluation.results import Answer, TaskResult
from research.models.cache import CacheKind
from research.runtime import terminal
from research.sharding import MeshConfig

if TYPE_CHECKING:
    from research.evaluation.lm_eval_model import HarnessModel

# the seeds of lm-eval's own command: Python's and numpy's, and of the examples in a prompt
_SEED, _NUMPY_SEED, _EXAMPLES_SEED = 0, 1234, 1234


@dataclasses.dataclass(frozen=True)
class HarnessTasks:
    """What `graft evaluate --lm-eval` asks."""

    # tasks, groups and patterns such as `mmlu_*`
    names: tuple[str, ...]
    # with task files of one's own; None: only lm-eval's
    folder: str | None = None
    # most questions of a task, its first ones; None asks them all
    limit: int | None = None
    # worked examples in front of each question; None: as the task says
    shots: int | None = None
    # whether questions are written in the run's template
    in_template: bool = False
    # rows of a batch
    batch_size: int = 16

    @property
    def settings(self) -> dict[str, Any]:
        """How questions are asked, as JSON."""
        return {"kind": "lm_eval", "shots": self.shots, "in_template": self.in_template}


@dataclasses.dataclass(frozen=True)
class HarnessReport:
    """Results of lm-eval's tasks."""

    # task -> its answers, with the metrics that are means over them
    tasks: Mapping[str, TaskResult]
    # task or group -> metric -> number, as lm-eval aggregates
    aggregates: Mapping[str, Mapping[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """What `graft evaluate --out` writes, with the answer to every question."""
        return {
            "lm_eval": self.aggregates,
            "tasks": {name: result.to_dict() for name, result in self.tasks.items()},
        }


def open_tasks(tasks: HarnessTasks) -> dict[str, list[Any]]:
    """Name -> lm-eval's tasks and groups of that name; looks at their data.

    Raises:
      ValueError: lm-eval is not there, or a task is not known or cannot be opened.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(
            f"--lm-eval needs lm-evaluation-harness ({error}): run tools/setup evaluate, and this "
            "again"
        ) from None
    if tasks.folder is not None and (functions := check_folder(tasks.folder)):
        terminal.show(f"these run, as the task files say: {'; '.join(functions)}")
    # lm-eval's own ten thousand files take long to read: first the folder's alone
    for includes_all in (False, True) if tasks.folder else (True,):
        manager = TaskManager(include_path=tasks.folder, include_defaults=includes_all)
        names = {name: manager.match_tasks([name]) for name in tasks.names}
        unknown = [name for name, matches in names.items() if not matches]
        if unknown:
            continue
        matches = dict.fromkeys(name for each in names.values() for name in each)
        try:
            return {name: _load(manager, name) for name in matches}
        except KeyError as error:  # what a group has, and the folder has not
            if includes_all:
                what = ", ".join(matches)
                raise ValueError(f"lm-eval cannot open {what}: {error!r:.300}") from error
    there = suggestion(unknown[0], manager.all_tasks)
    raise ValueError(
        f"lm-eval has no task {unknown[0]!r}" + (there if "did you mean" in there else "")
    )


def _load(manager: Any, name: str) -> list[Any]:
    try:
        loaded = manager.load([name])
    except (KeyError, OSError):
        raise
    except Exception as error:  # whatever a task's file and its code raise
        cause = f", from {error.__cause__!r:.300}" if error.__cause__ else ""
        message = f"lm-eval cannot open the task {name}: {error!r:.300}{cause}"
        raise ValueError(message) from error
    groups = loaded["groups"]
    return [groups[name]] if name in groups else list(loaded["tasks"].values())


def evaluate_tasks(
    run: Run,
    tasks: HarnessTasks,
    loaded_tasks: Mapping[str, list[Any]],
    adapter: str | None = None,
    mesh: MeshConfig | None = None,
    cache_dtype: CacheKind | None = None,
) -> HarnessReport:
    """Asks a run every question of some tasks.

    Args:
      loaded_tasks: as `open_tasks` gives them.
      adapter: of a bank: which adapter all rows use.
      mesh: how all devices are arranged; None: each has the whole model.
      cache_dtype: how keys and values of written answers are stored; None: in the compute type.

    Raises:
      ValueError: what a task asks for and Graft has not, or several processes.
    """
    from research.evaluation.lm_eval_model import HarnessModel

    if jax.process_count() > 1:
        raise ValueError("lm-eval's tasks are asked by one process: leave --distributed out")
    if cache_dtype and not _are_written(loaded_tasks):
        raise ValueError(
            f"cache_dtype {cache_dtype}: none of these tasks is answered in words, so that nothing "
            "is stored: leave it out"
        )
    results: dict[str, TaskResult] = {}
    aggregates: dict[str, dict[str, float]] = {}
    with loaded_model(run, adapter, mesh, cache_dtype) as loaded:
        model = HarnessModel(loaded, tasks.batch_size)
        for objects in loaded_tasks.values():
            start = time.perf_counter()
            content = _evaluate(model, tasks, objects)
            seconds = time.perf_counter() - start  # of all tasks of a group together
            for name, metrics in (content["results"] | content.get("groups", {})).items():
                aggregates[name] = _numbers(metrics)
            for name, samples in content["samples"].items():
                result = _result(name, samples, aggregates[name], model, seconds)
                results[name] = dataclasses.replace(result, settings=tasks.settings)
    return HarnessReport(results, aggregates)


def _are_written(loaded_tasks: Mapping[str, list[Any]]) -> bool:
    """Whether any task is answered in words."""
    from lm_eval.tasks import TaskManager

    objects = [each for objects in loaded_tasks.values() for each in objects]
    tasks = TaskManager(include_defaults=False).load(objects)["tasks"]
    return any(task.OUTPUT_TYPE == "generate_until" for task in tasks.values())


def _evaluate(model: HarnessModel, tasks: HarnessTasks, objects: Sequence[Any]) -> dict[str, Any]:
    """What lm-eval finds; its own intervals, which are bootstrapped, are left out."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    random.seed(_SEED)
    np.random.seed(_NUMPY_SEED)
    loaded = TaskManager(include_defaults=False).load(list(objects))
    for name, task in loaded["tasks"].items():
        own_shots = task.get_config("num_fewshot")
        if tasks.shots is not None and own_shots == 0 and tasks.shots:
            raise ValueError(f"{name} says num_fewshot: 0, and takes no --shots")
        shots = own_shots if tasks.shots is None else tasks.shots
        task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=_EXAMPLES_SEED)
    try:
        return evaluate(
            lm=model,
            task_dict=loaded,
            limit=tasks.limit,
            bootstrap_iters=0,
            apply_chat_template=tasks.in_template,
            fewshot_as_multiturn=tasks.in_template,
        )
    except ValueError as error:
        if not tasks.shots:
            raise
        raise ValueError(f"with --shots {tasks.shots}: {error}") from error


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metric -> number of what lm-eval calls `metric,filter`, without its errors."""
    numbers = {}
    for key, value in metrics.items():
        name, comma, chosen_filter = key.partition(",")
        if comma and not name.endswith("_stderr") and isinstance(value, int | float | np.number):
            numbers[_metric_name(name, chosen_filter)] = float(value)
    return numbers


def _metric_name(name: str, chosen_filter: str) -> str:
    return name if chosen_filter == "none" else f"{name}/{chosen_filter}"


def _result(
    task: str,
    samples: Sequence[Mapping[str, Any]],
    aggregates: Mapping[str, float],
    model: HarnessModel,
    seconds: float,
) -> TaskResult:
    """The answers of a task; those of several filters to one question are one."""
    by_document: dict[int, list[Mapping[str, Any]]] = {}
    for sample in samples:
        by_document.setdefault(sample["doc_id"], []).append(sample)
    scores = {
        number: {
            _metric_name(metric, sample["filter"]): float(sample[metric])
            for sample in each
            for metric in sample["metrics"]
            if isinstance(sample[metric], bool | int | float | np.number)
        }
        for number, each in by_document.items()
    }
    means = {
        metric
        for metric, value in aggregates.items()
        if all(metric in each for each in scores.values())
        # a sum of as many numbers, each within a rounding
        and math.isclose(np.mean([e[metric] for e in scores.values()]), value, rel_tol=1e-9)
    }
    answers, truncated = [], 0
    for number, each in by_document.items():
        usage = model.usage[task, number]
        truncated += usage.truncated
        answers.append(
            Answer(
                question=str(each[0]["arguments"][0][0]),
                answer=_text(each[0]["filtered_resps"]),
                digest=digest([each[0]["doc_hash"], each[0]["target_hash"]]),
                scores={name: value for name, value in scores[number].items() if name in means},
                is_cut=usage.is_cut,
                prompt_tokens=usage.prompt_tokens,
                new_tokens=usage.new_tokens,
            )
        )
    tokens_read = sum(answer.prompt_tokens for answer in answers if not answer.new_tokens)
    return TaskResult(answers, truncated, seconds, tokens_read, cost=model.cost(task))


def _text(responses: Sequence[Any]) -> str:
    """An answer in words, or its likelihoods as JSON."""
    if len(responses) == 1 and isinstance(responses[0], str):
        return responses[0]
    return json.dumps(responses, default=str)
