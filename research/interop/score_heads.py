"""Heads for classes or a number, as transformers' `ForSequenceClassification` has them: `score`."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from research.checkpoints.runs import Run
from research.interop.family import Family
from research.interop.fields import UnsupportedModelError
from research.methods import Method, Several
from research.objectives.labelled_text import LabelledText

MODULE = "score"
TENSOR = f"{MODULE}.weight"


@dataclasses.dataclass(frozen=True)
class ScoreHead:
    """What stands in an export in place of the vocabulary's head.

    Attributes:
      weight: [C,D].
      fields: those of `config.json` that say what it scores.
    """

    weight: np.ndarray
    fields: Mapping[str, Any]


def head_of(method: Method) -> Method | None:
    """The part of a method that is a head; None: it has none."""
    members = method.of if isinstance(method, Several) else (method,)
    return next((member for member in members if member.head_outputs), None)


def architecture(family: Family) -> str:
    """The class of transformers that has a family's layers and such a head."""
    return family.classifier or re.sub(
        "(ForCausalLM|LMHeadModel)$", "ForSequenceClassification", family.architecture
    )


def read_head(run: Run) -> ScoreHead | None:
    """The head of a run; None: it has the vocabulary's.

    Raises:
      UnsupportedModelError: transformers would read the score at another token.
      ValueError: numbers that are not finite.
    """
    method = head_of(run.method)
    if method is None:
        return None
    name = f"head/site/{method.adapter}/kernel"
    kernel = np.asarray(run.read(name)[name], np.float32)
    if not np.isfinite(kernel).all():
        raise ValueError(f"{name} holds numbers that are not finite; nothing is exported")
    objective = objective_of(run)
    if objective.fixed(run.tokenizer)[1][-1:] == [run.tokenizer.pad_id]:
        raise UnsupportedModelError(
            f"the template {objective.template!r} ends with the token that the tokenizer pads "
            "with: transformers reads the score before it. Tune it with another template"
        )
    classes = objective.classes or ("LABEL_0",)
    problem = "single_label_classification" if objective.classes else "regression"
    fields = {
        "id2label": {str(number): name for number, name in enumerate(classes)},
        "label2id": {name: number for number, name in enumerate(classes)},
        "problem_type": problem,
        "pad_token_id": run.tokenizer.pad_id,
    }
    return ScoreHead(np.ascontiguousarray(kernel.T), fields)


def objective_of(run: Run) -> LabelledText:
    """How a run with a head reads texts.

    Raises:
      UnsupportedModelError: nothing says it.
    """
    objective = run.experiment.data.objective if run.experiment else None
    if not isinstance(objective, LabelledText):
        raise UnsupportedModelError(f"{run.path} does not say what the outputs of its head mean")
    return objective


def describe_use(run: Run, form: str, name: str) -> list[str]:
    """Lines of a card: Python that asks an export.

    Args:
      form: hf or peft.
      name: of the folder.
    """
    objective, place = objective_of(run), json.dumps(f"./{name}")
    outputs, template = objective.head_outputs, json.dumps(objective.template, ensure_ascii=False)
    lines = [
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline",
        "",
        f"model = AutoModelForSequenceClassification.from_pretrained({place})",
        f"tokenizer = AutoTokenizer.from_pretrained({place})",
    ]
    if form == "peft":
        lines = [
            "from peft import PeftModel",
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline",
            "",
            'base = "BASE"  # the folder or name of the base',
            "model = AutoModelForSequenceClassification.from_pretrained(",
            f"    base, num_labels={outputs}, pad_token_id={run.tokenizer.pad_id}",
            ")",
            f"model = PeftModel.from_pretrained(model, {place})",
            "tokenizer = AutoTokenizer.from_pretrained(base)",
        ]
    lines += [
        'ask = pipeline("text-classification", model=model, tokenizer=tokenizer)',
        f'print(ask({template}.replace("{{text}}", "...")))',
    ]
    names = ", ".join(objective.classes)
    what = f"The classes, in order: {names}." if names else "The output is the number itself."
    if not names:
        lines[-1] = lines[-1].replace('"...")', '"..."), function_to_apply="none"')
    return ["```python", *lines, "```", "", what, ""]
