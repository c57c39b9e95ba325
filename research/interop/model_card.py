"""The card of an exported model, from its run's records; what they do not state, it says so."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from research.checkpoints.runs import Run
from research.interop import score_heads, serving
from research.runtime import storage
from research.runtime.terminal import printable
from research.training.summary import SUMMARY, read_summary

UNKNOWN = "not stated"


def write(run: Run, form: str, name: str, evaluation: Mapping[str, Any] | None = None) -> str:
    """The card's Markdown.

    Args:
      form: what was exported: hf, peft, gguf or gguf-adapter.
      name: of the folder or the file that it was exported to.
      evaluation: what `graft evaluate --out` wrote, if there is any.
    """
    origin, summary = dict(run.origin or {}), _summary(run)
    licence = origin.get("licence", UNKNOWN)
    is_plain = re.fullmatch(r"[\w.+-]+", licence) is not None
    header = ["---", f"license: {licence if is_plain else json.dumps(licence)}", "---", ""]
    lines = header if licence != UNKNOWN else []
    lines += [f"# {_inline(run.path.parent.parent.name)}", ""]
    lines += [f"Made with Graft. Method: {_method(run)}.", "", "## Base", ""]
    if origin:
        lines += [f"- imported from {_inline(origin['source'])} ({origin['family']})"]
        lines += [f"- licence: {_inline(licence)}", f"- weights stored as: {origin['dtype']}"]
        if origin.get("quantised"):
            lines += [f"- the weights were quantised before: {origin['quantised']}"]
    else:
        lines += ["- none: trained from random weights"]
    if run.model.storage:
        kinds = ", ".join(run.model.storage_kinds)
        lines += [f"- its weights were stored as {kinds}; those here are what that reads as"]
    lines += ["", "## Data", "", *_data(run), "", "## Training", "", *_training(run, summary)]
    lines += ["", "## Evaluation", "", *_evaluation(summary, evaluation)]
    lines += ["", "## Use", "", *_use(run, form, name), *_template(run)]
    return printable("\n".join(lines).rstrip()) + "\n"


def _method(run: Run) -> str:
    # of a merged model: that which tuned it
    method = run.experiment.method if run.experiment else run.method
    settings = {k: v for k, v in vars(method).items() if k not in ("kind", "adapter")}
    text = _one_line(", ".join(f"{name} {value}" for name, value in settings.items()))
    return f"{method.kind} ({text})" if text else method.kind


def _data(run: Run) -> list[str]:
    if run.experiment is None:
        return ["- nothing was trained on here"]
    data = run.experiment.data
    lines = [
        f"- {_inline(s.name)} ({s.kind}, {s.split}), licence: {_inline(s.license or UNKNOWN)}"
        for s in data.sources
    ]
    settings = _one_line(f"{data.objective.settings or ''}")
    return [*lines, f"- objective: {data.objective.kind} {settings}".rstrip()]


def _training(run: Run, summary: Mapping[str, Any]) -> list[str]:
    experiment = run.experiment
    if experiment is None:
        return ["- none"]
    versions = run.checkpoint.metadata().get("versions", {})
    data, schedule = experiment.data, experiment.schedule
    lines = [
        f"- {run.checkpoint.step:,} of {experiment.steps:,} steps of {data.batch_size} x "
        f"{data.sequence_length} tokens, {experiment.optimizer.kind}, rate "
        f"{schedule.learning_rate:g} ({schedule.kind}), seed {experiment.seed}",
    ]
    if summary:
        trainable, total = summary["trainable_parameters"], summary["parameters"]
        lines += [
            f"- trained: {trainable:,} of {total:,} parameters",
            f"- cost: {summary['flops']:.3g} FLOPs, {summary['seconds']:,.0f} s, "
            f"{summary['tokens']:,.0f} tokens, {summary['peak_memory_bytes'] / 2**30:.2f} GiB",
            f"- {summary['truncated']:,} of {summary['documents']:,} documents were cut",
        ]
    return [*lines, "- " + ", ".join(f"{name} {version}" for name, version in versions.items())]


def _evaluation(summary: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> list[str]:
    lines = []
    if "heldout_loss" in summary:
        lines.append(f"- held-out loss: {summary['heldout_loss']:.4f} nats a trained token")
    for task, content in (evaluation or {}).get("tasks", {}).items():
        is_text = content["settings"].get("kind") == "text"
        for name, each in content["metrics"].items():
            form = (lambda value: f"{value:.3f}") if is_text else (lambda value: f"{value:.1%}")
            value, low, high = (form(each[part]) for part in ("value", "low", "high"))
            lines.append(f"- {_inline(f'{task}, {name}')}: {value} [{low}, {high}] of {each['n']}")
    return lines or ["- none was given (`graft evaluate --out FILE`, then `--evaluation FILE`)"]


def _use(run: Run, form: str, name: str) -> list[str]:
    """Commands, one block each; those of projects that do not serve it are left out."""
    if run.method.head_outputs:
        return _use_of_head(run, form, name)
    commands = serving.commands(run, form, name)
    if not commands and serving.prompt_format(run) is not None:
        return ["None serves it as it was tuned: export it merged (`--format hf`, `gguf`).", ""]
    if not commands:
        return [
            "It was trained to read its prompts both ways, or to fill in masked tokens, which none "
            "of transformers, vLLM, llama.cpp and Ollama computes.",
            "",
        ]
    lines = ["From the folder that holds this one:", ""]
    prompt = serving.prompt_format(run)
    if prompt is not None and not prompt.is_joint:
        lines[:0] = [
            "The parts of a prompt were tokenized apart. As one text some tokens at their edges "
            "are others, so vLLM and Ollama, which take one text, are not among these:",
            "",
        ]
    for command in commands:
        if not command.language:
            lines += [f"{command.title}: {_inline(command.text)}", ""]
            continue
        lines += [f"{command.title}:", ""] if command.title else []
        fence = _fence(command.text, 3)
        lines += [f"{fence}{command.language}", command.text, fence, ""]
    return lines


def _use_of_head(run: Run, form: str, name: str) -> list[str]:
    lines = score_heads.describe_use(run, form, name)
    head, tail = score_heads.objective_of(run).template.split("{text}")

    def parts(text: str) -> list[str]:
        return [part for part in (head, text, tail) if part]

    if not serving.is_joint(run.tokenizer, parts):
        lines += [
            "The parts of the template were tokenized apart. As one text some tokens at their "
            "edges are others, and scores differ a little.",
            "",
        ]
    return lines


def _one_line(text: str) -> str:
    """A text of a folder, a file or a config, which begins no line of its own."""
    return printable(text, lines=False)


def _fence(text: str, shortest: int) -> str:
    """Backticks around code, more than any in it, which would end it."""
    return "`" * max(shortest, *(len(run) + 1 for run in re.findall("`+", text) or [""]))


def _code(text: str) -> str:
    text = _one_line(text)
    space = " " * ("`" in text)
    return f"{_fence(text, 1)}{space}{text}{space}{_fence(text, 1)}"


def _inline(text: str) -> str:
    """The same with what Markdown and HTML would read in it as signs."""
    return re.sub(r"[\\`*<>\[\]|#]", r"\\\g<0>", _one_line(str(text)))


def _template(run: Run) -> list[str]:
    objective = run.experiment.data.objective if run.experiment else None
    if objective is None or objective.kind != "supervised":
        return []
    template = json.dumps(getattr(objective, "template", ""), ensure_ascii=False)
    begin = run.tokenizer.roles["begin"]
    return [
        f"It was tuned on prompts in this form, after the token {_code(begin)}: {_code(template)}"
    ]


def _summary(run: Run) -> dict[str, Any]:
    """The summary that the run wrote at its end; empty for a checkpoint of one that goes on."""
    workdir = run.path.parent.parent
    summary = read_summary(workdir) if storage.is_file(workdir / SUMMARY) else {}
    return summary if summary.get("steps") == run.checkpoint.step else {}
