"""Puts the quickstart's runs and the baselines to the same tasks and collects one table."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.quickstart.stories import Story
from research import sharding
from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.commands.evaluate import scorer
from research.config import cli, schema
from research.data.sources import open_source
from research.evaluation import compression, tasks
from research.evaluation.baselines import BASELINES
from research.generation import decode
from research.reports import statistics
from research.runtime.compilation_cache import enable_compilation_cache
from research.training.metrics import read_metrics

TextResults = Mapping[str, tasks.TextScores]
NEW_TOKENS = 16
BASELINE_NAMES = {
    "majority": "majority",
    "tfidf_linear": "TF-IDF + linear",
    "nearest_neighbour": "nearest neighbour",
}


def measure(folder: Path, story: Story) -> dict[str, Any]:
    """Everything that the table and the page show, ready for JSON."""
    enable_compilation_cache()
    asked = story.asked
    ways = {way: load_tasks(story, way) for _, way in asked.values()}
    text, choice = next(iter(ways.values()))
    names = dict.fromkeys(run for run, _ in asked.values())
    opened = {name: runs.open_run(folder / name) for name in names}
    trained = [name for name, run in opened.items() if run.experiment]
    summaries = {name: json.loads((folder / name / "summary.json").read_text()) for name in trained}
    print("\nreading held-out text and asking licence questions ...", flush=True)
    texts: dict[str, dict[str, tasks.TextScores]] = {}
    answers: dict[str, tasks.Answers] = {}
    for row, (name, way) in asked.items():
        run = opened[name]
        with scorer(run) as score:
            if name not in texts:
                texts[name] = tasks.read_text(score, text, run.tokenizer)
            answers[row] = tasks.choose(score, ways[way][1], run.tokenizer)
    before = texts[story.base]
    rows = [base_row(summaries.get(story.base), before, folder / story.base)]
    correct: list[np.ndarray] = []
    groups = next(iter(answers.values())).groups
    for row, (name, way) in asked.items():
        given = answers[row]
        made = {} if name == story.base else summaries[name]
        correct.append(given.correct)
        rows.append(
            {
                "name": row,
                "kind": "language model",
                "objective": "supervised" if made else "none (prompt only)",
                "examples": made.get("examples", 0),
                "tokens": made.get("tokens", 0),
                # different ones: a short run does not come to all of them
                "labels": min(made["documents"], round(made["examples"]))
                if made
                else ways[way][1].shots,
                "trainable": made.get("trainable_parameters", 0),
                "trainable_share": made.get("trainable_parameters", 0)
                / summaries["full"]["parameters"],
                "flops": made.get("flops", 0),
                "seconds": made.get("seconds", 0),
                "peak_memory": made.get("peak_memory_bytes"),
                "artifact": stored_bytes(folder / name / "model") if made else 0,
                "answer_seconds": given.seconds / len(given.expected),
                "truncated": given.truncated,
                "forgetting": forgetting(texts[name], before)
                if made and (experiment := opened[name].experiment) and experiment.init_from
                else None,
            }
        )
    for name, (baseline, right) in baseline_rows(choice).items():
        rows.append({"name": BASELINE_NAMES[name], **baseline})
        correct.append(right)
    for i, right in enumerate(correct):
        line = rows[i + 1]  # the first row is pretraining, which answers nothing
        line["quality"] = estimate(statistics.proportion_interval(right, groups=groups))
        if i:
            difference = statistics.paired_difference(right, correct[i - 1], groups=groups)
            line["gain"] = estimate(difference.difference) | {"p": difference.p_value}
    return {
        "table": rows,
        "text": text_table(text, before, opened[story.base]),
        "task": task_facts(choice, answers),
        "curves": curves(folder, trained),
        "samples": samples(opened, story.base, choice),
        "configs": {name: schema.to_dict(opened[name].experiment) for name in trained},
        "versions": opened["full"].checkpoint.metadata()["versions"],
        "caveat": story.caveat,
        "device": jax.devices()[0].device_kind,
    }


def load_tasks(story: Story, way: str) -> tuple[tasks.TextTask, tasks.ChoiceTask]:
    evaluation = cli.load(tasks.Evaluation, f"{story.evaluate}:{way}")
    assert evaluation.text is not None and evaluation.choice is not None
    return evaluation.text, evaluation.choice


def base_row(summary: Mapping[str, Any] | None, text: TextResults, folder: Path) -> dict[str, Any]:
    """What the base took, as far as it was made here, and how it reads."""
    stored = {"artifact": stored_bytes(folder / "model"), "bits_per_byte": pooled(text)}
    if summary is None:
        return {"name": "base, made elsewhere", "kind": "base", "labels": None, **stored}
    return {
        "name": "pretraining",
        "kind": "base",
        "objective": "causal",
        "examples": summary["examples"],
        "tokens": summary["tokens"],
        "labels": 0,
        "trainable": summary["trainable_parameters"],
        "trainable_share": 1.0,
        "flops": summary["flops"],
        "seconds": summary["seconds"],
        "peak_memory": summary["peak_memory_bytes"],
        **stored,
    }


def pooled(text: TextResults) -> float:
    """Bits per byte over all sources together."""
    nats = sum(float(scores.nats.sum()) for scores in text.values())
    return nats / np.log(2) / sum(scores.bytes for scores in text.values())


def forgetting(after: TextResults, before: TextResults) -> dict[str, float]:
    """Bits per byte of held-out pretraining text, after minus before, paired row by row."""
    change = np.concatenate([after[name].nats - before[name].nats for name in before])
    size = np.concatenate(
        [np.full(len(scores.nats), scores.bytes / len(scores.nats)) for scores in before.values()]
    )
    return estimate(statistics.ratio_interval(change / np.log(2), size))


def baseline_rows(task: tasks.ChoiceTask) -> dict[str, tuple[dict[str, Any], np.ndarray]]:
    """The baselines' rows and which test rows each gets right."""
    split = {name: open_source(task.source, name) for name in ("train", task.split)}
    train = [split["train"][i] for i in range(len(split["train"]))]
    asked = split[task.split]
    test = [asked[i] for i in tasks.questions(task, len(asked))]
    found = {}
    for name, baseline in BASELINES.items():
        predictions, cost = baseline(
            [row["prompt"] for row in train],
            [row["completion"] for row in train],
            [row["prompt"] for row in test],
        )
        row = {
            "kind": "baseline",
            "objective": "supervised" if name != "majority" else "count",
            "examples": len(train),
            "labels": len(train),
            "trainable": cost["parameters"],
            "seconds": cost["fit_seconds"],
            "artifact": cost["artifact_bytes"],
            "answer_seconds": cost["predict_seconds"] / len(test),
        }
        right = np.asarray([row["completion"] for row in test]) == np.asarray(predictions)
        found[name] = row, right
    return found


def text_table(task: tasks.TextTask, ours: TextResults, run: Run) -> list[dict[str, Any]]:
    """Bits per byte of each kind of held-out text: the base, xz and the token models.

    The token models are fitted on the whole training split of all five kinds, of which the base
    has read a part.
    """
    vocabulary, words = run.tokenizer.vocabulary_size, run.tokenizer
    documents = []
    for source in task.sources:
        opened = open_source(source, "train")
        texts = [opened[i]["text"] for i in range(len(opened))]
        documents += [np.asarray(ids, np.int32) for ids in words.encode_batch(texts)]
    unigram = compression.fit_unigram(documents, vocabulary, words.end_id)
    bigram = compression.fit_bigram(documents, vocabulary, words.begin_id, words.end_id)
    rows = []
    for source in task.sources:
        texts = tasks.heldout_texts(task, source, words)
        ids = [np.asarray(i, np.int32) for i in words.encode_batch(texts)]
        rows.append(
            {
                "kind": source.name.removeprefix("graft_"),
                "bytes": ours[source.name].bytes,
                "model": ours[source.name].bits_per_byte,
                "xz": compression.xz_bits_per_byte(texts),
                "unigram": compression.bits_per_byte(unigram.nats(ids), texts),
                "bigram": compression.bits_per_byte(bigram.nats(ids), texts),
            }
        )
    return rows


def task_facts(task: tasks.ChoiceTask, answers: Mapping[str, tasks.Answers]) -> dict[str, Any]:
    from research.data import builders

    facts = dict(builders.prepared(task.source.name).info.metadata)
    any_row = next(iter(answers.values()))
    return {
        "labels": len(any_row.labels),
        "questions": len(any_row.expected),
        "cut": {row: given.truncated for row, given in answers.items()},
        "leak": facts["leak"],
        "key_verbatim": facts["key_verbatim"],
        "window": task.sequence_length,
    }


def curves(folder: Path, names: list[str]) -> dict[str, dict[str, list[float]]]:
    """Loss against tokens seen, by run."""
    found = {}
    for name in names:
        lines = [line for line in read_metrics(folder / name / "metrics.jsonl") if "loss" in line]
        summary = json.loads((folder / name / "summary.json").read_text())
        a_step = summary["tokens"] / summary["steps"]
        found[name] = {
            "tokens": [line["step"] * a_step for line in lines],
            "loss": [line["loss"] for line in lines],
        }
    return found


def samples(
    opened: Mapping[str, Run], base: str, task: tasks.ChoiceTask, count: int = 6
) -> dict[str, Any]:
    """What the models write, greedily: answers to test notices, and text of the base."""
    asked = open_source(task.source, task.split)
    chosen = np.random.default_rng(0).permutation(len(asked))[:count]
    rows = [asked[int(i)] for i in chosen]
    answers: dict[str, list[str]] = {}
    texts: list[dict[str, str]] = []
    for name, run in opened.items():
        write = functools.partial(written, run)
        if name == base:
            starts = ["def main(", "KING.", "The city of ", "Hi! How are you", "The module "]
            begins = [[*run.tokenizer.opening, *run.tokenizer.encode(text)] for text in starts]
            texts = [
                {"prompt": start, "text": text}
                for start, text in zip(starts, write(begins, 48), strict=True)
            ]
        objective = task.objective
        questions = [
            objective.encode_prompt(run.tokenizer, row["prompt"], task.sequence_length)[0]
            for row in rows
        ]
        answers[name] = write(questions, NEW_TOKENS)
    notices = [
        {
            "prompt": row["prompt"],
            "expected": row["completion"],
            "answers": {name: given[i] for name, given in answers.items()},
        }
        for i, row in enumerate(rows)
    ]
    return {"notices": notices, "texts": texts}


def written(run: Run, prompts: list[list[int]], new_tokens: int) -> list[str]:
    """The run's greedy continuations."""
    mesh, rules = sharding.MeshConfig().make(), sharding.RULES
    with sharding.mesh_context(mesh, rules):
        model = runs.load_model(run, mesh, rules)
        rows = decode.generate(model, prompts, new_tokens, run.tokenizer.end_id)
    return [run.tokenizer.decode(row) for row in rows]


def stored_bytes(folder: Path) -> int:
    """Bytes on disk of what a user of the run needs: weights, tokenizer and metadata."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def estimate(value: statistics.Estimate) -> dict[str, float]:
    return {"value": value.value, "low": value.low, "high": value.high, "n": value.n}
