"""The decisive study's whole grid on a larger base, SmolLM2 135M, with five seeds, on accelerators.

graft study plan experiments/pretraining_vs_finetuning_large --topology v5e:2x2     # its price
graft launch --study experiments/pretraining_vs_finetuning_large --target tpu-vm --help

The plan: 1,000 to 1,700 trials of 906P to 1.39E FLOPs; all cells fit, by the TPU compiler. On four
v5e chips at half of the roofline's speed an hour to an hour and a half, 4.0 to 6.2 chip-hours, 4.81
to 7.41 US dollars at the prices of configs/prices.json, for training alone. Not run.
"""

import dataclasses

from configs import shapes
from configs.finetune.smollm2_lora import BASE
from experiments.pretraining_vs_finetuning import study as small
from research.studies import Form, Stage, Study

SCRATCH = {"init_from": None, "model": shapes.SMOLLM2_135M, "tokenizer": BASE}
FULL, ADAPTERS = (3e-5, 1e-4, 3e-4), (3e-4, 1e-3, 3e-3)
FORMS = {
    "from scratch": Form(SCRATCH, (3e-4, 1e-3, 3e-3)),
    "full": Form({}, FULL),
    **{
        name: dataclasses.replace(small.FORMS[name], values=ADAPTERS)
        for name in ("LoRA", "adapter")
    },
    **{name: small.FORMS[name] for name in ("prompt", "three examples in the prompt", "TF-IDF")},
}


def get_study() -> Study:
    study = small.get_study()
    return dataclasses.replace(
        study,
        changes={"init_from": BASE, "steps": 500, "data.batch_size": 32},
        forms=FORMS,
        only=None,
        stages=(
            Stage("screen", (0,), {"steps": 250}, evaluated=False),
            Stage("confirm", (1, 2, 3, 4, 5)),
        ),
        bases={BASE: f"graft convert import --from smollm2 --out {BASE}"},
        evaluation="configs/quickstart/evaluate.py",
        answers=None,
        comparisons=study.comparisons[:-1],
    )
