"""Labelled tasks at any number of labels, right and wrong: tuning against pretraining.

    graft train --config configs/studies/labels.py:licences --workdir runs/labels/licences \\
        --config.data.sources[0].max_records=160
    graft train --config configs/studies/labels.py:diabetes --workdir runs/labels/diabetes

Two kinds of task: a notice of prose and which of 25 licences it is under (law), and a patient's
record and whether they have diabetes (healthcare). A run reads 960 records, however few its labels.

Expected of 160 labels at the best rate of those tried, right answers in % over three seeds (`graft
study show experiments/pretraining_vs_finetuning`): licences 47.2 [43.6, 50.9], diabetes 69.6 [65.1,
74.1].
Hardware: two CPU cores, Python 3.11, jax 0.10.2.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import sources
from configs.finetune import smollm2_lora
from configs.quickstart import pretrain, tune
from configs.studies import longer

LICENCES = (
    "agpl-3.0 agpl-3.0-plus apache-2.0 bsd-new bsd-simplified cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
    "cc0-1.0 commercial-license epl-1.0 gpl-1.0-plus gpl-2.0 gpl-2.0-plus gpl-3.0 gpl-3.0-plus "
    "lgpl-2.0-plus lgpl-2.1 lgpl-2.1-plus lgpl-3.0 mit mpl-2.0 other-permissive "
    "proprietary-license warranty-disclaimer"
).split()
# task -> its source, how it is asked, and its labels
TASKS: dict[str, tuple[str, str, list[str]]] = {
    "licences": ("graft_licences", sources.LICENSE_TEMPLATE, LICENCES),
    "diabetes": ("graft_diabetes", "Patient:\n{prompt}\nDiabetes: ", ["no", "yes"]),
}
# what a study changes to start from nothing
SCRATCH = {"init_from": None, "model": pretrain.MODEL, "tokenizer": pretrain.TOKENIZER}
# to start from the base that read four times as much
LONGER = longer.START
# to start from a larger base: a quarter of the text, as it takes a hundred times the compute
SMOLLM2 = {
    "init_from": smollm2_lora.BASE,
    "compute.max_scan_layers": 1,
    "data.batch_size": 2,
    "checks.other_template": True,
}
# to tune by LoRA
LORA = {"method": {"kind": "lora", "rank": 16}}
# to ask with three worked examples, for which a question's window has no room
SHOTS = {"evaluation.choice.shots": 3, "evaluation.choice.sequence_length": 256}
# command lines of the bases
MAKES = longer.MAKES | {
    smollm2_lora.BASE: f"graft convert import --from smollm2 --out {smollm2_lora.BASE}"
}
WRONG_LABELS = "experiments/pretraining_vs_finetuning/labels.py:WrongLabels"


def source(name: str, wrong: float = 0.0) -> dict[str, Any]:
    """The task's source, a share of its training labels wrong; other splits are right."""
    dataset, _, labels = TASKS[name]
    transforms = (
        [dict(kind="python", path=WRONG_LABELS, settings=dict(share=wrong, labels=labels))]
        if wrong
        else []
    )
    fields = dict(prompt="text", completion="label")
    return dict(name=dataset, fields=fields, training_transforms=transforms)


def task(name: str, wrong: float = 0.0) -> dict[str, Any]:
    """What a study changes to train on a task, and to ask it."""
    template = TASKS[name][1]
    return {
        "data.sources": [source(name, wrong)],
        "data.objective.template": template,
        "evaluation.choice.source": source(name),
        "evaluation.choice.objective.template": template,
    }


def get_config(name: str = "licences") -> ConfigDict:
    if name not in TASKS:
        raise ValueError(f"labels.py:{name}: there are {', '.join(TASKS)}")
    config = tune.get_config("full")
    config.steps = 120
    config.data = dict(
        sources=[source(name)],
        objective=dict(kind="supervised", template=TASKS[name][1]),
        sequence_length=128,
        batch_size=8,
    )
    # what rates are chosen by: the loss of right labels of other records
    config.evaluate_split = "validation"
    config.evaluate_tokens = 20_000
    config.checks.splits = ("test",)
    return config
