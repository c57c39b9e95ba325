"""Evaluates a trained run: held-out text, questions with known answers, answers in words.

    graft evaluate --task law --run runs/quickstart/lora
    graft evaluate --config configs/quickstart/evaluate.py \\
        --run runs/quickstart/pretrain --config.choice.shots=4

`graft tasks` lists the tasks that come with Graft; a config of your own may ask anything else.

Prints a line a metric, with its interval, and with `--out FILE` writes everything as JSON, answer
by answer. `--against` compares with another run, or with such a file, question by question:

    graft evaluate --config configs/quickstart/evaluate.py \\
        --run runs/quickstart/lora --against runs/quickstart/full

`--page FILE` writes one HTML page: metrics in their parts, answers to read, costs, and with
`--against` the questions on which the two differ.

Answers in words are scored as the config's `tasks` say: docs/guides/evaluate.md.
lm-evaluation-harness's tasks, of its own and in a folder (tools/setup evaluate):

    graft evaluate --lm-eval arc_easy,my_task --lm-eval-tasks tasks/ --run runs/smollm2 --limit 100

A model that one device does not hold: `--config.mesh.data=1 --config.mesh.fsdp=-1`, and with
--distributed on each host, all hosts together.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.commands import lm_eval_flags, model_flags
from research.config import cli, schema
from research.runtime.terminal import show

if TYPE_CHECKING:
    from research.checkpoints.runs import Run
    from research.evaluation.comparison import MetricDifference
    from research.evaluation.lm_eval_tasks import HarnessReport
    from research.evaluation.report import Report
    from research.evaluation.results import Cost, TaskResult
    from research.evaluation.tasks import Evaluation


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parse(argv)

    from research.checkpoints import runs
    from research.evaluation.breakdown import break_down
    from research.evaluation.comparison import compare, other_settings
    from research.runtime import distributed, files
    from research.runtime.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    with distributed.abort_on_error(), cli.clear_errors():
        # it may start this program again in another environment: before it joins others
        evaluation = _read_evaluation(arguments)
        is_main_process = distributed.initialize() if arguments.distributed else True
        _check_places(arguments, is_main_process)
        evaluate = lm_eval_flags.evaluator(evaluation, arguments)
        run = runs.open_run(arguments.run, arguments.base)
        report: dict[str, Any] = {"run": str(run.path), "fingerprint": run.fingerprint}
        if arguments.adapter:
            report["adapter"] = arguments.adapter
        distributed.check_equal_across_processes(
            config=json.dumps(schema.to_dict(evaluation), sort_keys=True), model=run.fingerprint
        )
        # looked at before anything is asked
        ask_other = None
        if arguments.against:
            ask_other = _open_other(arguments.against, lambda run: evaluate(run, evaluation))
        results = evaluate(run, evaluation, arguments.adapter)
        report |= results.to_dict()
        for name, result in results.tasks.items():
            report["tasks"][name]["breakdown"] = break_down(result).to_dict()
        if is_main_process:  # what follows may fail
            if arguments.out:
                files.write_json(arguments.out, report)
            _show_results(report, results.tasks)
        differences, otherwise = [], []
        other_results: Mapping[str, TaskResult] = {}
        if ask_other is not None:
            other_results = ask_other()
            differences = compare(results.tasks, other_results)
            otherwise = other_settings(results.tasks, other_results)
            report["against"] = {
                "path": str(arguments.against),
                "differences": [dataclasses.asdict(difference) for difference in differences],
            }
    if not is_main_process:
        return
    if differences:
        _show_differences(arguments.against, differences, otherwise, results.tasks)
        if arguments.out:
            files.write_json(arguments.out, report)
    if arguments.page:
        _write_page(arguments, report, results.tasks, (other_results, differences, otherwise))
        show(f"page: {arguments.page}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.program_parser("evaluate", __doc__, config_required=False)
    parser.add_argument("--task", metavar="NAME", help="in place of --config: see graft tasks")
    parser.add_argument("--run", required=True, metavar="DIR", help="a run, or a checkpoint of it")
    parser.add_argument("--base", metavar="DIR", help="where a tuned run's base is, if it moved")
    parser.add_argument("--adapter", metavar="NAME", help="of a bank: which adapter to measure")
    parser.add_argument(
        "--against", metavar="DIR|FILE", help="another run, or what --out wrote: compare both"
    )
    parser.add_argument("--out", metavar="FILE", help="write the results as JSON")
    parser.add_argument(
        "--page", type=cli.on_disk, metavar="FILE", help="write the results as one HTML page"
    )
    model_flags.add_cache(parser)
    parser.add_argument(
        "--fresh", action="store_true", help="ask again what an earlier run was answered"
    )
    lm_eval_flags.add(parser)
    cli.add_distributed(parser)
    arguments = cli.parse(parser, argv)
    lm_eval_flags.check(parser, arguments)
    return arguments


def _read_evaluation(arguments: argparse.Namespace) -> Evaluation:
    """What a config or a task asks, as the flags say; in the environment that its scorers need."""
    from research.commands.tasks import task_config
    from research.evaluation import tasks
    from research.runtime import environment

    evaluation = tasks.Evaluation()
    if config := arguments.config or (arguments.task and task_config(arguments.task)):
        evaluation = cli.load(tasks.Evaluation, config, arguments.overrides)
        for task in evaluation.tasks.values():
            environment.reexec_in_layer(task.layer)
    if arguments.cache_dtype:
        evaluation = dataclasses.replace(evaluation, cache_dtype=arguments.cache_dtype)
    return evaluation


def _check_places(arguments: argparse.Namespace, is_main_process: bool) -> None:
    """Refuses places that cannot be written, before anything is asked."""
    from research.runtime import storage

    places = {"--out": arguments.out, "--page": arguments.page, "--against": arguments.against}
    names = {flag: storage.absolute(path).resolve() for flag, path in places.items() if path}
    for flag, other in (("--page", "--out"), ("--out", "--against"), ("--page", "--against")):
        if flag in names and names[flag] == names.get(other):
            raise ValueError(f"{flag} and {other} name one file, {places[flag]}: name two")
    for flag, path in (("--out", arguments.out), ("--page", arguments.page)):
        if path and storage.is_folder(path):
            raise ValueError(f"{flag} {path} is a folder; name a file")
        if path and is_main_process:
            storage.check_writable(storage.absolute(path).parent)


def _open_other(
    path: str, evaluate: Callable[[Run], Report | HarnessReport]
) -> Callable[[], Mapping[str, TaskResult]]:
    """What gives the answers of another run, which is asked then, or of a file.

    Raises:
      FileNotFoundError, ValueError: it is neither.
    """
    from research.checkpoints import runs
    from research.evaluation.comparison import read_results

    if Path(path).is_file():
        results = read_results(path)
        return lambda: results
    other = runs.open_run(path)
    return lambda: evaluate(other).tasks


def _write_page(
    arguments: argparse.Namespace,
    report: Mapping[str, Any],
    tasks: Mapping[str, TaskResult],
    comparison: tuple[Mapping[str, TaskResult], Sequence[MetricDifference], Sequence[str]],
) -> None:
    from research.evaluation import page

    others, differences, otherwise = comparison
    names = ("run", "fingerprint", "adapter")
    page.write(
        arguments.page,
        f"{arguments.task or arguments.lm_eval or arguments.config}, asked of {arguments.run}",
        tasks,
        against=(str(arguments.against), others, differences) if arguments.against else None,
        otherwise=otherwise,
        warnings=report.get("training_overlap", ()),
        provenance={name: report[name] for name in names if name in report},
    )


def _show_results(report: Mapping[str, Any], tasks: Mapping[str, TaskResult]) -> None:
    for task, result in tasks.items():
        _show_result(task, result)
    _show_aggregates(report.get("lm_eval", {}), tasks)
    for line in report.get("training_overlap", ()):
        show(f"warning: {line}")


def _show_differences(
    against: str,
    differences: Sequence[MetricDifference],
    otherwise: Sequence[str],
    tasks: Mapping[str, TaskResult],
) -> None:
    show(f"against {against}:")
    for line in otherwise:
        show(f"  asked otherwise: {line}")
    for each in differences:
        paired = each.paired.difference
        show(
            f"  {each.task}, {each.metric}: {each.first.value:.3f} and {each.second.value:.3f}, "
            f"{paired:+.3f} (p = {each.p_value:.2g}, corrected){_on_some(each, tasks)}"
        )


def _on_some(difference: MetricDifference, tasks: Mapping[str, TaskResult]) -> str:
    """That only some of a task's questions have a metric in both results."""
    count, total = difference.first.n, tasks[difference.task].metrics[difference.metric].n
    return "" if count == total else f", on the {count} of {total} questions that have it in both"


def _show_aggregates(
    aggregates: Mapping[str, Mapping[str, float]], tasks: Mapping[str, TaskResult]
) -> None:
    """A line for each number of lm-eval's that is no mean over answers."""
    for name, metrics in aggregates.items():
        means = tasks[name].metrics if name in tasks else {}
        for metric, value in metrics.items():
            if metric not in means:
                show(f"{name}, {metric}: {value:.4g}")


def _describe(cost: Cost) -> str:
    """FLOPs and bytes, where they are known: `, 98.4GFLOP, weights 538MB, cache 5.9MB`."""
    from research.reports.tables import format_si

    parts = [("", cost.flops, "FLOP"), ("weights ", cost.weight_bytes, "B")]
    parts.append(("cache ", cost.cache_bytes, "B"))
    return "".join(f", {of}{format_si(number)}{unit}" for of, number, unit in parts if number)


def _show_bits(result: TaskResult) -> None:
    """A line a source of held-out text."""
    from research.evaluation.text_task import bits_per_byte, perplexity

    for source, bits in bits_per_byte(result).items():
        of_tokens = perplexity(result, source)
        numbers = f"{bits:.3f} bits per byte, perplexity {of_tokens:.2f} a token"
        if bits.n == 1:  # which has no interval
            numbers = f"{bits.value:.3f} bits per byte, perplexity {of_tokens.value:.2f} a token"
        show(f"{source}: {numbers}; {bits.n:,} document{'' if bits.n == 1 else 's'}")


def _show_result(task: str, result: TaskResult) -> None:
    """A line a metric, and what was cut or could not be read."""
    from research.evaluation.breakdown import never_given

    if result.is_text:
        _show_bits(result)
    for name, estimate in () if result.is_text else result.metrics.items():
        show(f"{task}, {name}: {estimate:.1%} % of {estimate.n}")
    counts = {
        "questions cut to the window": result.truncated,
        "answers cut at their longest": result.cut - result.failed,
        "answers cut where their constraint failed": result.failed,
        "answers in which nothing could be read": result.unreadable,
        "prompts without a passage": result.without_passages,
    }
    counts |= result.unscored
    notes = [f"{count} {what}" for what, count in counts.items() if count]
    if labels := never_given(result.answers):
        notes.append(f"never answered: {', '.join(labels)}")
    tokens = (
        f"{result.prompt_tokens:,} + {result.new_tokens:,} tokens, " if result.new_tokens else ""
    )
    if result.tokens_read:
        tokens = f"{result.tokens_read:,} tokens, "
    cost = f"{tokens}{result.seconds:.1f} s{_describe(result.cost)}"
    show(f"  {'; '.join([cost, *notes])}")
    for step in result.steps:
        tokens = f"{step.prompt_tokens:,} + {step.new_tokens:,} tokens, " if step.answers else ""
        show(f"  {step.step}: {step.answers} answers, {tokens}{step.seconds:.1f} s")
    if result.earlier:
        count = "" if result.earlier == len(result.answers) else f"{result.earlier} answers "
        show(f"  {count}from an earlier run, --fresh asks again")
    if errors := result.errors:
        correlation = (
            "" if errors.correlation is None else f"; correlation {errors.correlation:.3f}"
        )
        show(
            f"  mean squared error {errors.mean_squared:.4g}, mean absolute error "
            f"{errors.mean_absolute:.4g}{correlation}"
        )
    if calibration := result.calibration:
        show(
            f"  calibration error {calibration.error:.1%}, Brier {calibration.brier:.3f}; of the "
            f"surest half {calibration.surest_half:.1%} right"
        )
