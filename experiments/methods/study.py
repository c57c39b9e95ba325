"""Every method on one base and one task: what each learns on few labels, keeps and forgets.

graft study run experiments/methods      # what the ledger has is not run again
graft study report experiments/methods
"""

from configs.methods.smollm2 import FORMS, Form
from research import studies
from research.studies import Comparison, Stage, Study, Sweep

BASE = "runs/smollm2"
# forms whose answers are compared with full tuning's
COMPARED = "lora dora qlora_nf4 houlsby ia3 norms last_layers prefix prompt".split()


def get_study() -> Study:
    return Study(
        claim="On few labels every way to tune answers as full tuning does, within 10 points",
        source="the papers of the methods, each of its own",
        refuted_if="the interval of a difference from full tuning lies beyond 10 points",
        config="configs/methods/smollm2.py",
        forms={name: study_form(form) for name, form in FORMS.items()},
        sweep=Sweep(max_growth=3),
        stages=(
            Stage("screen", seeds=(0,), changes={"steps": 20}),
            Stage("confirm", seeds=(1, 2, 3)),
        ),
        bases={
            BASE: f"graft convert import --from smollm2 --out {BASE}",
            f"{BASE}_nf4": f"graft convert quantize --from {BASE} --to nf4 --out {BASE}_nf4",
            f"{BASE}_int8": f"graft convert quantize --from {BASE} --to int8 --out {BASE}_int8",
        },
        evaluation="configs/methods/evaluate.py",
        comparisons=tuple(
            Comparison(name, "full", margin=0.1, metric="quality", goal="highest")
            for name in COMPARED
        ),
        # of November 2026, before studies had a ledger; answers one by one were not kept
        accepted_code=("before_ledgers",),
    )


def study_form(form: Form) -> studies.Form:
    """A form of the config as one of the study."""
    start = {"init_from": f"{BASE}_{form.storage}"} if form.storage else {}
    return studies.Form({"method": form.method, **form.overrides, **start}, form.learning_rates)
