"""What is known of each base before it is asked: its size, licence, and how well it reads the
task's texts, in bits per byte, which models of any tokenizer share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

from research import methods, tree
from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.data.sources import JsonlConfig
from research.decisions.problem import Problem
from research.decisions.ways import Base
from research.evaluation.report import evaluate_run
from research.evaluation.tasks import Evaluation, TextTask
from research.runtime import files

# Tokens of the task's texts that are read, and of a row.
TEXT_TOKENS = 20_000
_LENGTH = 256


@dataclasses.dataclass(frozen=True)
class BaseFacts:
    """A base, before anything is asked of it."""

    name: str
    parameters: int
    # what its makers say; "not stated"
    licence: str
    # of the task's texts, without their answers
    bits_per_byte: float


def measure_bases(problem: Problem, bases: Sequence[Base], folder: Path) -> list[BaseFacts]:
    """Facts of each base; what was measured before is read from the folder.

    Args:
      folder: where `bases.json` and the texts are kept.
    """
    texts = list(problem.rows.texts) or [r["prompt"] for r in _rows(problem)]
    path = folder / "domain.jsonl"
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    files.write_if_other(path, content)
    digest, cache_file = hashlib.sha256(content.encode()).hexdigest()[:16], folder / "bases.json"
    known: dict[str, float] = {}
    if cache_file.exists():
        known = json.loads(cache_file.read_text(encoding="utf-8"))
    facts = []
    for base in bases:
        run = runs.open_run(base.path)
        key = f"{run.fingerprint} {digest}"
        if key not in known:
            known[key] = _bits_per_byte(run, path)
            files.write_json(cache_file, known)
        facts.append(
            BaseFacts(
                name=base.name,
                parameters=_parameter_count(run),
                licence=str((run.origin or {}).get("licence", "not stated")),
                bits_per_byte=known[key],
            )
        )
    return facts


def _rows(problem: Problem) -> Sequence:
    return problem.rows.train or problem.rows.validation


def _bits_per_byte(run: Run, path: Path) -> float:
    source = JsonlConfig("domain", str(path))
    text = TextTask(
        sources=(source,), split="train", max_tokens=TEXT_TOKENS, sequence_length=_LENGTH
    )
    return evaluate_run(run, Evaluation(text=text)).bits_per_byte["domain"]


def _parameter_count(run: Run) -> int:
    model = methods.abstract(run.model, run.method, methods.single_layers(run.model))
    return sum(math.prod(leaf.shape) for leaf in tree.flatten(model).values())
