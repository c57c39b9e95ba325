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

# the texts of that machine: other versions of Python and of its pages are other texts
DATA = {
    "graft_books:heldout": "9e91af883511f29116a964438f97ebf89044312e79d111ad3aaca9ad065d85b8",
    "graft_code:heldout": "d1da29f1b511c555217a4ecd39390667418c2f17a47af07bccd5e2c4d3e4af0a",
    "graft_encyclopedia:heldout": "a0dd2f8dbcc52ea71db59f063efbcaeb852d4db91d740dcf6803d0ccc13b2cb5",  # noqa: E501
    "graft_forum:heldout": "436eed96862085d66aefb10b9d6fb01d8fe82dd91dd86ae3cf7dd0b0e5b1dac6",
    "graft_licences:test": "29e972cc5c96e6165d58e3582d4b55167d3abc20e6066e00d423ddb95c760e96",
    "graft_licences:train": "cc649bb5b5d5b289fef709abc6d03216a182269ddfe11366116e16731c44d21a",
    "graft_licences:validation": "e82d116c99017cb6fb5ed7f096db6f8e95b0c070074a066d3dde4d00b1efa406",
    "graft_web:heldout": "16935db7cf7b0cda3008ff34bc552637bd72045a10bdef002f395617cc78ca2b",
}


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
        accepted_data=DATA,
    )


def study_form(form: Form) -> studies.Form:
    """A form of the config as one of the study."""
    start = {"init_from": f"{BASE}_{form.storage}"} if form.storage else {}
    return studies.Form({"method": form.method, **form.overrides, **start}, form.learning_rates)
