"""Flags of `graft evaluate` for tasks of lm-evaluation-harness."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from research.checkpoints.runs import Run
    from research.evaluation.lm_eval_tasks import HarnessReport
    from research.evaluation.report import Report
    from research.evaluation.tasks import Evaluation


def add(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("lm-evaluation-harness, in the place of a config's tasks")
    group.add_argument(
        "--lm-eval", metavar="TASKS", help="names of tasks and groups, with commas between them"
    )
    group.add_argument(
        "--lm-eval-tasks", metavar="FOLDER", help="with task files of your own (YAML)"
    )
    group.add_argument("--limit", type=int, metavar="N", help="only the first N of each task")
    group.add_argument("--shots", type=int, metavar="N", help="worked examples before a question")
    group.add_argument(
        "--apply-chat-template", action="store_true", help="write questions as the run was tuned"
    )
    group.add_argument("--batch-size", type=int, metavar="N", help="rows of a batch (16)")


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the program where flags do not go together."""
    names = ("lm_eval_tasks", "limit", "shots", "apply_chat_template", "batch_size")
    flags = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name)]
    ways = [bool(way) for way in (arguments.task, arguments.config, arguments.lm_eval)]
    # of a config, lm-eval's tasks take the mesh
    if not any(ways) or ways[0] + any(ways[1:]) > 1:
        parser.error("say what is asked: one of --task NAME, --config FILE and --lm-eval TASKS")
    if arguments.lm_eval and arguments.fresh:
        parser.error("--fresh goes with --task or --config: answers to lm-eval's are not kept")
    if not arguments.lm_eval and flags:
        parser.error(f"{flags[0]} goes with --lm-eval TASKS")
    if arguments.overrides and not (arguments.config or arguments.task):
        parser.error(f"--config.{arguments.overrides[0]} goes with --config FILE")
    for name in ("limit", "batch_size"):
        if (number := getattr(arguments, name)) is not None and number < 1:
            parser.error(f"--{name.replace('_', '-')} {number}: it must be 1 or more")
    if arguments.shots is not None and arguments.shots < 0:
        parser.error(f"--shots {arguments.shots}: it must be 0 or more")


def evaluator(
    evaluation: Evaluation, arguments: argparse.Namespace
) -> Callable[..., Report | HarnessReport]:
    """What evaluates a run: it takes it, the evaluation, and the name of a bank's adapter.

    Raises:
      ValueError: a task of lm-eval that is not there, or a config's tasks beside them.
    """
    from research.evaluation.answer_cache import default_cache
    from research.evaluation.lm_eval_tasks import HarnessTasks, evaluate_tasks, open_tasks
    from research.evaluation.report import evaluate_run

    if not arguments.lm_eval:
        settings = {"cache": default_cache(), "is_fresh": arguments.fresh}
        return functools.partial(evaluate_run, **settings, looks_for_training=True)
    if evaluation.all_tasks:
        raise ValueError(
            "--lm-eval takes of a config its `mesh` and `cache_dtype` alone: evaluate its tasks "
            "apart"
        )
    tasks = HarnessTasks(
        names=tuple(filter(None, map(str.strip, arguments.lm_eval.split(",")))),
        folder=arguments.lm_eval_tasks,
        limit=arguments.limit,
        shots=arguments.shots,
        in_template=arguments.apply_chat_template,
        batch_size=arguments.batch_size or 16,
    )
    loaded_tasks = open_tasks(tasks)

    def evaluate(run: Run, evaluation: Evaluation, adapter: str | None = None) -> HarnessReport:
        settings = (evaluation.mesh, evaluation.cache_dtype)
        return evaluate_tasks(run, tasks, loaded_tasks, adapter, *settings)

    return evaluate
