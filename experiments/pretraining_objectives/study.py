"""Which pretraining objective serves a labelled task best, at equal compute?

graft study run experiments/pretraining_objectives
graft study report experiments/pretraining_objectives
"""

from configs.studies.licences import MAKES
from configs.studies.objectives import OBJECTIVES
from research.studies import Comparison, Form, Stage, Study, Sweep, axis

CONFIG = "configs/studies/objectives.py"
FOLDER = "runs/objectives"


def get_study() -> Study:
    return Study(
        claim="Bidirectional and denoising objectives make a better base for a labelled task than "
        "next tokens do, where the prompt is read both ways",
        source="T5 (Raffel 2020, arXiv:1910.10683, table 4: GLUE 83.3 denoising, 80.9 causal); "
        "UL2 (Tay 2022, arXiv:2205.05131); Wang 2022, arXiv:2204.05832",
        refuted_if="the causal base has the lowest held-out loss, however the prompt is read",
        config="configs/studies/licences.py:full",
        forms={name: Form({"init_from": f"{FOLDER}/{name}"}) for name in OBJECTIVES},
        # whether the prompt is read both ways when tuning
        axes=axis("data.objective.bidirectional", False, True),
        sweep=Sweep((2e-3, 4e-3, 8e-3), factor=2),
        stages=(
            Stage("screen", seeds=(0,), changes={"steps": 75}),
            Stage("confirm", seeds=(1, 2, 3, 4)),
        ),
        bases=MAKES
        | {
            f"{FOLDER}/{name}": f"graft train --config {CONFIG}:{name} --workdir {FOLDER}/{name}"
            for name in OBJECTIVES
        },
        comparisons=tuple(Comparison(name, "causal") for name in OBJECTIVES if name != "causal"),
    )
