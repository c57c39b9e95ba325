"""Results of the study of methods, as results.json keeps them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.checkpoints.checkpointer import library_versions
from research.config.renamed import upgrade
from research.reports.statistics import Estimate
from research.runtime.files import write_json


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a model: on the task, and on text that it was not tuned on."""

    # share of right answers
    quality: Estimate
    # kind of text -> bits
    bits_per_byte: dict[str, float]
    # of the model
    fingerprint: str

    @property
    def mean_bits(self) -> float:
        """Bits per byte, mean over the kinds of text."""
        return sum(self.bits_per_byte.values()) / len(self.bits_per_byte)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Scores:
        """From a report of `graft evaluate`, or a mapping that holds one."""
        quality = Estimate(**content["quality"])
        return cls(quality, content["bits_per_byte"], content["fingerprint"])


@dataclasses.dataclass
class BaseResult:
    """A base before it is tuned; None: not measured yet."""

    scores: Scores | None = None
    heldout_loss: float | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> BaseResult:
        scores = Scores.from_json(content) if "quality" in content else None
        return cls(scores, content.get("heldout_loss"))

    def to_json(self) -> dict[str, Any]:
        content = dataclasses.asdict(self.scores) if self.scores else {}
        if self.heldout_loss is not None:
            content["heldout_loss"] = self.heldout_loss
        return content


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A run at a form's best rate: what it cost, as its summary has it, and its scores."""

    trainable_parameters: int
    program_bytes: int
    flops: float
    loss: float
    heldout_loss: float
    seconds: float
    quickest_step_seconds: float
    scores: Scores

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RunResult:
        return cls.from_summary(content, Scores.from_json(content))

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any], scores: Scores) -> RunResult:
        """From a run's summary.json."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "scores"]
        return cls(**{name: summary[name] for name in names}, scores=scores)

    def to_json(self) -> dict[str, Any]:
        content = dataclasses.asdict(self)
        return content | content.pop("scores")


@dataclasses.dataclass
class FormResult:
    """A form's sweep, and its runs at the best rate."""

    # the form's config, but for its rate
    setting: dict[str, Any]
    # rate -> held-out loss after a few steps; None is one that is not finite
    screen: dict[str, float | None] = dataclasses.field(default_factory=dict)
    # seed -> run
    runs: dict[str, RunResult] = dataclasses.field(default_factory=dict)
    # the best rate, and the bytes that are stored beside the base; None: no run yet
    rate: float | None = None
    bytes: int | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FormResult:
        # settings that were written under older names
        setting = upgrade(upgrade(content["setting"], "Experiment"), "Method")
        runs = {seed: RunResult.from_json(run) for seed, run in content["runs"].items()}
        return cls(setting, content["screen"], runs, content.get("rate"), content.get("bytes"))

    def to_json(self) -> dict[str, Any]:
        content: dict[str, Any] = {
            "setting": self.setting,
            "screen": self.screen,
            "runs": {seed: run.to_json() for seed, run in self.runs.items()},
        }
        if self.rate is not None:
            content |= {"rate": self.rate, "bytes": self.bytes}
        return content


@dataclasses.dataclass
class StudyResults:
    """Results of all bases and forms: everything that the table needs."""

    # "base", or "base_" and how it is stored -> its result
    bases: dict[str, BaseResult] = dataclasses.field(default_factory=dict)
    forms: dict[str, FormResult] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> StudyResults:
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            {name: BaseResult.from_json(base) for name, base in content["bases"].items()},
            {name: FormResult.from_json(form) for name, form in content["forms"].items()},
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "bases": {name: base.to_json() for name, base in self.bases.items()},
            "forms": {name: form.to_json() for name, form in self.forms.items()},
        }

    def save(self, path: Path) -> None:
        """Writes the file anew, with the versions of the libraries."""
        write_json(path, {"versions": library_versions()} | self.to_json())
