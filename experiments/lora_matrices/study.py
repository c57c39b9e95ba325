"""Which matrices should LoRA adapt, where all choices train equally many numbers?

graft study run experiments/lora_matrices
graft study report experiments/lora_matrices
"""

from configs.studies.licences import MAKES
from research.studies import Comparison, Equal, Form, Stage, Study, Sweep

ATTENTION, MLP = r"layers/\d+/attention/", r"layers/\d+/mlp/"
MATRICES = {
    "Q": (f"{ATTENTION}query",),
    "K": (f"{ATTENTION}key",),
    "V": (f"{ATTENTION}value",),
    "O": (f"{ATTENTION}output",),
    "QV": (f"{ATTENTION}(query|value)",),
    "QKVO": (rf"{ATTENTION}\w+",),
    "MLP": (rf"{MLP}\w+",),
    "all": (rf"{ATTENTION}\w+", rf"{MLP}\w+"),
}


def get_study() -> Study:
    return Study(
        claim="A fixed number of LoRA's parameters is better spread over more matrices",
        source="Hu 2021, arXiv:2106.09685, table 5: WikiSQL at 18M parameters of GPT-3, "
        "Q 70.4, K 70.0, V 73.0, O 73.2, QV 73.7, QKVO 73.7",
        refuted_if="one matrix has a lower held-out loss than the pair, or the pair than all four",
        config="configs/studies/licences.py:lora",
        forms={name: Form({"method.targets": targets}) for name, targets in MATRICES.items()},
        equal=Equal(19_000),
        sweep=Sweep((1e-3, 3e-3, 1e-2)),
        stages=(
            Stage("screen", seeds=(0,), changes={"steps": 75}, keep_values=2),
            Stage("confirm", seeds=(1, 2, 3, 4)),
        ),
        bases=MAKES,
        comparisons=(
            Comparison("QV", "Q", published="73.7 against 70.4"),
            Comparison("QV", "V", published="73.7 against 73.0"),
            Comparison("QKVO", "QV", published="73.7 against 73.7"),
            Comparison("QKVO", "Q", published="73.7 against 70.4"),
            Comparison("MLP", "QKVO"),
            Comparison("all", "QKVO"),
        ),
        # what ran before the fields of records were checked one by one, which changed no number
        accepted_code=("58ec10f14e894942",),
    )
