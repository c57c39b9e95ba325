"""Evaluates the quickstart's runs and the baselines on the same tasks, for one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.quickstart.results import (
    Continuation,
    Curve,
    Results,
    Samples,
    TableRow,
    TaskFacts,
    TextRow,
)
from experiments.quickstart.stories import Story
from research import sharding
from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.config import cli, schema
from research.data import builders
from research.data.sources import open_source
from research.evaluation import compression, tasks
from research.evaluation.baselines import BASELINES
from research.evaluation.report import ask, loaded_model, read_evaluation
from research.evaluation.results import MetricValues, TaskResult
from research.evaluation.text_task import bits_per_byte
from research.generation import decode
from research.reports import statistics
from research.reports.page import Sample
from research.runtime.compilation_cache import enable_compilation_cache
from research.training.metrics import read_metrics

NEW_TOKENS = 16
BASELINE_NAMES = {
    "majority": "majority",
    "tfidf_linear": "TF-IDF + linear",
    "nearest_neighbour": "nearest neighbour",
}
STARTS = ("def main(", "KING.", "The city of ", "Hi! How are you", "The module ")


def measure(folder: Path, story: Story, overrides: Sequence[str] = ()) -> Results:
    """Results of all runs and baselines.

    Args:
      folder: the quickstart's, with its finished runs.
      story: the runs and the configs of their evaluation.
      overrides: `key=value` over those configs.
    """
    enable_compilation_cache()
    ways = {way: load_tasks(story, way, overrides) for _, way in story.table_rows.values()}
    text_task, choice_task = parts_of(next(iter(ways.values())))
    names = dict.fromkeys(run for run, _ in story.table_rows.values())
    all_runs = {name: runs.open_run(folder / name) for name in names}
    trained_names = [name for name, run in all_runs.items() if run.experiment]
    summaries = {name: read_summary(folder / name) for name in trained_names}
    print("\nreading held-out text and asking licence questions ...", flush=True)
    texts: dict[str, TaskResult] = {}
    answers: dict[str, TaskResult] = {}
    for row, (name, way) in story.table_rows.items():
        run = all_runs[name]
        parts = [tasks.CHOICE] if name in texts else [tasks.CHOICE, tasks.TEXT]
        with loaded_model(run) as model:
            results = ask(model, read_evaluation(ways[way], run.tokenizer), parts)
        answers[row] = results[tasks.CHOICE]
        texts.setdefault(name, results.get(tasks.TEXT, answers[row]))
    before = texts[story.base]
    table = [base_row(summaries.get(story.base), before, folder / story.base)]
    for row, (name, way) in story.table_rows.items():
        if name == story.base:
            table.append(prompted_row(row, answers[row], parts_of(ways[way])[1].shots))
        else:
            full_parameters = summaries["full"]["parameters"]
            row_of_run = tuned_row(row, answers[row], summaries[name], full_parameters)
            row_of_run.artifact = stored_bytes(folder / name / "model")
            experiment = all_runs[name].experiment
            if experiment and experiment.init_from:
                row_of_run.forgetting = forgetting(texts[name], before)
            table.append(row_of_run)
    baselines = baseline_rows(choice_task)
    table += [row for row, _ in baselines]
    right = [MetricValues.of(each.answers, "right") for each in answers.values()]
    groups = right[0].groups
    correct = [*(each.values == 1 for each in right), *(mask for _, mask in baselines)]
    add_quality(table[1:], correct, None if groups is None else groups.astype(int))
    return Results(
        table=table,
        text=text_rows(text_task, before, all_runs[story.base]),
        task=task_facts(choice_task, answers),
        curves={name: read_curve(folder / name) for name in trained_names},
        samples=draw_samples(all_runs, story.base, choice_task),
        configs={name: schema.to_dict(all_runs[name].experiment) for name in trained_names},
        versions=all_runs["full"].checkpoint.metadata()["versions"],
        caveat=story.caveat,
        device=jax.devices()[0].device_kind,
    )


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary in a run's folder."""
    return json.loads((folder / "summary.json").read_text())


def load_tasks(story: Story, way: str, overrides: Sequence[str]) -> tasks.Evaluation:
    return cli.load(tasks.Evaluation, f"{story.evaluate}:{way}", overrides)


def parts_of(evaluation: tasks.Evaluation) -> tuple[tasks.TextTask, tasks.ChoiceTask]:
    assert evaluation.text is not None and evaluation.choice is not None
    return evaluation.text, evaluation.choice


def base_row(summary: Mapping[str, Any] | None, text: TaskResult, folder: Path) -> TableRow:
    """Row of the base: its cost, if it was trained here, and its bits per byte."""
    artifact, bits = stored_bytes(folder / "model"), pooled_bits_per_byte(text)
    if summary is None:
        return TableRow("base, made elsewhere", "base", artifact=artifact, bits_per_byte=bits)
    return TableRow(
        name="pretraining",
        kind="base",
        objective="causal",
        examples=summary["examples"],
        tokens=summary["tokens"],
        labels=0,
        trainable=summary["trainable_parameters"],
        trainable_share=1.0,
        flops=summary["flops"],
        seconds=summary["seconds"],
        peak_memory=summary["peak_memory_bytes"],
        artifact=artifact,
        bits_per_byte=bits,
    )


def prompted_row(name: str, answers: TaskResult, shots: int) -> TableRow:
    """Row of the base without tuning, with worked examples in front of each question."""
    return TableRow(
        name=name,
        kind="language model",
        objective="none (prompt only)",
        examples=0,
        tokens=0,
        labels=shots,
        trainable=0,
        trainable_share=0.0,
        flops=0,
        seconds=0,
        artifact=0,
        answer_seconds=answers.seconds / len(answers.answers),
        truncated=answers.truncated,
    )


def tuned_row(
    name: str, answers: TaskResult, summary: Mapping[str, Any], full_parameters: int
) -> TableRow:
    """Row of a run that was trained on the task."""
    return TableRow(
        name=name,
        kind="language model",
        objective="supervised",
        examples=summary["examples"],
        tokens=summary["tokens"],
        # different ones: a short run does not come to all of them
        labels=min(summary["documents"], round(summary["examples"])),
        trainable=summary["trainable_parameters"],
        trainable_share=summary["trainable_parameters"] / full_parameters,
        flops=summary["flops"],
        seconds=summary["seconds"],
        peak_memory=summary["peak_memory_bytes"],
        answer_seconds=answers.seconds / len(answers.answers),
        truncated=answers.truncated,
    )


def add_quality(
    rows: Sequence[TableRow], correct: Sequence[np.ndarray], groups: np.ndarray | None
) -> None:
    """Adds to each row the share of right answers, and its gain over the row above.

    Args:
      rows: those that answer.
      correct: for each of them, [N] which questions it answers right.
      groups: [N] near-duplicate clusters of the questions.
    """
    for row, right in zip(rows, correct, strict=True):
        row.quality = statistics.proportion_interval(right, groups=groups)
    for row, right, right_above in zip(rows[1:], correct[1:], correct, strict=False):
        difference = statistics.paired_difference(right, right_above, groups=groups)
        row.gain, row.gain_p_value = difference.difference, difference.p_value


def documents(text: TaskResult) -> tuple[np.ndarray, np.ndarray]:
    """Bits and bytes of every document of all sources, in one order for all models."""
    parts = [
        (answer.scores[source] * answer.sizes[source], answer.sizes[source])
        for source in bits_per_byte(text)
        for answer in text.answers
        if source in answer.scores
    ]
    bits, sizes = np.asarray(parts, float).T
    return bits, sizes


def pooled_bits_per_byte(text: TaskResult) -> float:
    """Bits per byte over all sources together."""
    bits, sizes = documents(text)
    return float(bits.sum() / sizes.sum())


def forgetting(after: TaskResult, before: TaskResult) -> statistics.Estimate:
    """Bits per byte of held-out pretraining text, after minus before, paired by document."""
    (bits, sizes), (bits_before, _) = documents(after), documents(before)
    return statistics.ratio_interval(bits - bits_before, sizes)


def baseline_rows(task: tasks.ChoiceTask) -> list[tuple[TableRow, np.ndarray]]:
    """Rows of the baselines, and a mask [N] of the test questions that each gets right."""
    train_source = open_source(task.source, "train")
    train = [train_source[i] for i in range(len(train_source))]
    test = [question.record for question in task.read()]
    rows = []
    for name, baseline in BASELINES.items():
        predictions, cost = baseline(
            [example["prompt"] for example in train],
            [example["completion"] for example in train],
            [example["prompt"] for example in test],
        )
        row = TableRow(
            name=BASELINE_NAMES[name],
            kind="baseline",
            objective="supervised" if name != "majority" else "count",
            examples=len(train),
            labels=len(train),
            trainable=cost["parameters"],
            seconds=cost["fit_seconds"],
            artifact=cost["artifact_bytes"],
            answer_seconds=cost["predict_seconds"] / len(test),
        )
        expected = np.asarray([example["completion"] for example in test])
        rows.append((row, expected == np.asarray(predictions)))
    return rows


def text_rows(task: tasks.TextTask, result: TaskResult, base: Run) -> list[TextRow]:
    """Bits per byte of each kind of held-out text: the base, xz and the token models.

    The token models are fitted on the whole training split of all five kinds, of which the base
    has read a part.
    """
    tokenizer = base.tokenizer
    training = []
    for source in task.sources:
        train = open_source(source, "train")
        texts = [train[i]["text"] for i in range(len(train))]
        training += [np.asarray(ids, np.int32) for ids in tokenizer.encode_batch(texts)]
    unigram = compression.fit_unigram(training, tokenizer.vocabulary_size, tokenizer.end_id)
    bigram = compression.fit_bigram(
        training, tokenizer.vocabulary_size, tokenizer.begin_id, tokenizer.end_id
    )
    rows, questions, bits = [], task.prepare(tokenizer), bits_per_byte(result)
    for source in task.sources:
        texts = [each.record["text"] for each in questions if each.record["source"] == source.name]
        ids = [np.asarray(each, np.int32) for each in tokenizer.encode_batch(texts)]
        rows.append(
            TextRow(
                kind=source.name.removeprefix("graft_"),
                bytes=sum(len(text.encode()) for text in texts),
                model=bits[source.name].value,
                xz=compression.xz_bits_per_byte(texts),
                unigram=compression.bits_per_byte(unigram.nats(ids), texts),
                bigram=compression.bits_per_byte(bigram.nats(ids), texts),
            )
        )
    return rows


def task_facts(task: tasks.ChoiceTask, answers: Mapping[str, TaskResult]) -> TaskFacts:
    metadata = dict(builders.prepare_builder(task.source.name).info.metadata)
    return TaskFacts(
        labels=len(task.labels),
        questions=len(next(iter(answers.values())).answers),
        cut={row: each.truncated for row, each in answers.items()},
        leak=metadata["leak"],
        key_verbatim=metadata["key_verbatim"],
        window=task.sequence_length,
    )


def read_curve(folder: Path) -> Curve:
    """Loss against tokens seen of one run."""
    records = [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    summary = read_summary(folder)
    tokens_per_step = summary["tokens"] / summary["steps"]
    return Curve(
        tokens=[record["step"] * tokens_per_step for record in records],
        loss=[record["loss"] for record in records],
    )


def draw_samples(
    all_runs: Mapping[str, Run], base: str, task: tasks.ChoiceTask, count: int = 6
) -> Samples:
    """Greedy answers of every run to `count` test notices, and text of the base."""
    test_source = open_source(task.source, task.split)
    numbers = np.random.default_rng(0).permutation(len(test_source))[:count]
    rows = [test_source[int(i)] for i in numbers]
    answers: dict[str, list[str]] = {}
    texts: list[Continuation] = []
    for name, run in all_runs.items():
        tokenizer = run.tokenizer
        if name == base:
            starts = [[*tokenizer.opening, *tokenizer.encode(start)] for start in STARTS]
            texts = list(map(Continuation, STARTS, complete(run, starts, 48)))
        questions = [
            task.objective.encode_prompt(tokenizer, row["prompt"], task.sequence_length)[0]
            for row in rows
        ]
        answers[name] = complete(run, questions, NEW_TOKENS)
    notices = [
        Sample(row["prompt"], row["completion"], {name: each[i] for name, each in answers.items()})
        for i, row in enumerate(rows)
    ]
    return Samples(notices, texts)


def complete(run: Run, prompts: list[list[int]], new_tokens: int) -> list[str]:
    """Greedy continuations of a run."""
    mesh, rules = sharding.MeshConfig().make(), sharding.RULES
    with sharding.mesh_context(mesh, rules):
        model = runs.load_model(run, mesh, rules)
        rows = decode.generate(model, prompts, new_tokens, run.tokenizer.end_id)
    return [run.tokenizer.decode(row) for row in rows]


def stored_bytes(folder: Path) -> int:
    """Bytes on disk that a user of the run needs: weights, tokenizer and metadata."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
