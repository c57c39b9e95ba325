"""A whole evaluation of one model: its tasks scored, as numbers and answers row by row."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from research import sharding
from research.adapters import banks
from research.batch import Batch
from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.evaluation import tasks
from research.reports.statistics import Estimate, proportion_interval
from research.training.heldout_loss import Score, make_score


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluation found."""

    # source -> bits per byte of its held-out text; None: not asked
    bits_per_byte: dict[str, float] | None
    answers: tasks.Answers | None

    @property
    def quality(self) -> Estimate | None:
        """The share of right answers, by near-duplicate groups where there are some."""
        if self.answers is None:
            return None
        return proportion_interval(self.answers.correct, groups=self.answers.groups)

    def to_dict(self) -> dict[str, Any]:
        """What `graft evaluate --out` writes; [expected, predicted] of every question."""
        content: dict[str, Any] = {}
        if self.bits_per_byte is not None:
            content["bits_per_byte"] = self.bits_per_byte
        if self.answers is not None and self.quality is not None:
            rows = zip(self.answers.expected, self.answers.predictions, strict=True)
            content["quality"] = dataclasses.asdict(self.quality)
            content["truncated"] = self.answers.truncated
            content["answers"] = [list(row) for row in rows]
        return content


def evaluate_run(run: Run, evaluation: tasks.Evaluation, adapter: str | None = None) -> Report:
    """Scores a model on the tasks of an evaluation.

    Args:
      adapter: of a bank: which adapter all rows use.

    Raises:
      ValueError: no task, or a bank without a name.
    """
    _check_adapter(run, adapter)
    if evaluation.text is None and evaluation.choice is None:
        raise ValueError("the config has neither `text` nor `choice`: nothing to measure")
    bits_per_byte, answers = None, None
    with scorer(run, adapter, evaluation.mesh) as score:
        if evaluation.text is not None:
            text = tasks.score_text(score, evaluation.text, run.tokenizer)
            bits_per_byte = {name: scores.bits_per_byte for name, scores in text.items()}
        if evaluation.choice is not None:
            answers = tasks.answer_questions(score, evaluation.choice, run.tokenizer)
    return Report(bits_per_byte, answers)


@contextlib.contextmanager
def scorer(
    run: Run, adapter: str | None = None, mesh: sharding.MeshConfig | None = None
) -> Iterator[Score]:
    """Context with the scoring function of a run, its model loaded onto all devices.

    Args:
      adapter: which of a bank's adapters all rows use.
      mesh: how all devices are arranged; None: each has the whole model.

    Raises:
      ValueError: a bank without a name, or a name that there is not.
    """
    _check_adapter(run, adapter)
    bank = run.method.bank_names
    adapter_number = banks.adapter_number(run.method, adapter)

    devices, rules = (mesh or sharding.MeshConfig()).make(), sharding.RULES
    with sharding.mesh_context(devices, rules):
        model = runs.load_model(run, devices, rules)
        score = make_score(model, sharding.batch_sharding(devices, rules))

        def with_adapter(batch: Batch) -> np.ndarray:
            rows = np.full(len(batch.tokens), adapter_number, np.int32)
            return score(dataclasses.replace(batch, adapter=rows))

        yield with_adapter if bank else score


def _check_adapter(run: Run, adapter: str | None) -> None:
    """Raises ValueError unless an adapter is named where the run is a bank, and only there."""
    bank = run.method.bank_names
    if bool(bank) != (adapter is not None):
        available = ", ".join(bank) or "none"
        raise ValueError(f"--adapter names one of a bank's adapters; {run.path} has {available}")
