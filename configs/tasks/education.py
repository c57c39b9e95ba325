"""Education: how a quantity changes with another, of two answers; a parable's moral, of five.

    graft evaluate --task education --run runs/smollm2
    graft evaluate --task education:parables --run runs/smollm2
    graft train --config configs/finetune/smollm2_task.py:education --workdir runs/education

Questions: 700 of QuaRTz, as OpenAI's evals have them; the two of a pair that differ in a word and
in the answer share a split; 600 parables of the same evals. Licence: MIT.

Expected: SmolLM2-135M-Instruct as it is 48.7% right of 150; after 40 steps of LoRA 52.7% [44.8,
60.3], which is not told apart (docs/results/tasks.md). Of 150 parables it has 26.0% [19.3, 33.3]
right, of five morals each.
"""

from typing import Any

from ml_collections import ConfigDict


def source() -> dict[str, Any]:
    return dict(name="graft_quartz", unused_fields=["choices"])


def get_config(part: str = "") -> ConfigDict:
    config = ConfigDict()
    if part == "parables":
        config.tasks = dict(parables=_parables())
        return config
    if part:
        raise ValueError(f"education.py:{part}: there is parables")
    config.tasks = dict(
        education=dict(
            kind="multiple_choice",
            source=source(),
            reference="completion",
            reference_kind="text",
        )
    )
    return config


def _parables() -> dict[str, Any]:
    ask = dict(kind="template", fields=dict(prompt="{prompt}\nWhat is the moral of this story?"))
    return dict(
        kind="multiple_choice",
        source=dict(name="graft_parables", unused_fields=["choices"], transforms=[ask]),
        reference="completion",
        reference_kind="text",
    )
