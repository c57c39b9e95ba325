"""Domain pretraining: a base reads the task's texts, without their labels, before it is tuned
(Gururangan 2020, arXiv:2004.10964)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.config import schema
from research.data.sources import JsonlConfig
from research.decisions.problem import Problem
from research.decisions.rungs import LeftOut
from research.decisions.trials import Clock, Trials, write_config
from research.decisions.tuning import Start, TuningSettings
from research.decisions.ways import Base
from research.runtime import files
from research.studies.study import Form, Stage, Study, Sweep
from research.text.normalize import normalize

NAME = "domain pretraining"
PREFIX = "read its texts, "
# Fewer texts without a label are none; and this share of all is held out to choose a rate.
FEWEST_TEXTS = 20
_HELDOUT = 0.1
_LENGTH = 256


def pretrain(
    problem: Problem, base: Base, folder: Path, settings: TuningSettings, clock: Clock
) -> Start:
    """Where tuning starts after the base has read the task's texts.

    Args:
      folder: of the study.

    Raises:
      LeftOut: there are no texts without a label.
      ValueError: no trial finished; says why.
    """
    unlabelled = len(problem.rows.texts)
    if unlabelled < FEWEST_TEXTS:
        raise LeftOut(
            f"{unlabelled} texts without a label are too few to read: rows without an answer are "
            "such texts, and those beyond --labels"
        )
    # the questions of training rows are texts too; others are held out from everything
    texts = [*problem.rows.texts, *(record["prompt"] for record in problem.rows.train)]
    texts = list({normalize(text): text for text in texts}.values())
    _write_texts(folder, texts)
    source = JsonlConfig(f"{problem.name}_texts", str(folder / "texts-{split}.jsonl"))
    steps = settings.pretraining_steps
    config: dict[str, Any] = {
        "steps": steps,
        "init_from": base.path,
        "data": {
            "sources": [schema.to_dict(source)],
            "sequence_length": _LENGTH,
            "batch_size": settings.batch_size,
        },
        "schedule": {"learning_rate": 1e-4, "warmup": max(1, steps // 10)},
        "evaluate_split": "heldout",
        "checks": {"other_template": True},
        "log_every": max(1, steps // 10),
    }
    study = Study(
        claim=NAME,
        source="",
        refuted_if="",
        config=write_config(folder / "config.py", config | dict(settings.changes)),
        forms={NAME: Form()},
        sweep=Sweep(settings.pretraining_rates, max_growth=0),
        stages=(Stage("read", (0,)),),
    )
    trials = Trials(folder)
    best = trials.best(study, clock)
    start = Start(base, trials.run_dir(best.trial), PREFIX, best.seconds)
    return dataclasses.replace(start, flops=float(best.row["flops"]))


def _write_texts(folder: Path, texts: Sequence[str]) -> None:
    order = np.random.default_rng(0).permutation(len(texts))
    count = max(2, round(_HELDOUT * len(texts)))
    for split, places in {"heldout": order[:count], "train": order[count:]}.items():
        lines = [json.dumps({"text": texts[place]}) for place in places.tolist()]
        content = "".join(f"{line}\n" for line in lines)
        files.write_if_other(folder / f"texts-{split}.jsonl", content)
