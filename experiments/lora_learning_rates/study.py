"""The best learning rate of LoRA against that of full tuning, and what LoRA must reach.

graft study run experiments/lora_learning_rates
graft study report experiments/lora_learning_rates
"""

from configs.studies.licences import MAKES
from research.studies import Comparison, Form, Ratio, Stage, Study, Sweep

ATTENTION = (r"layers/\d+/attention/\w+",)
FULL_RATES, LORA_RATES = (1e-3, 2e-3, 4e-3), (2.5e-3, 5e-3, 1e-2)


def lora(rank: int, **changes: object) -> Form:
    changes = {f"method.{key}": value for key, value in changes.items()}
    return Form({"method.rank": rank, **changes}, LORA_RATES)


def get_study() -> Study:
    return Study(
        claim="LoRA's best learning rate is ten times that of full tuning, whatever its rank; "
        "attention alone loses to all matrices",
        source="LoRA Without Regret (Schulman 2025): 9.8 times; about 15 in runs under 100 steps",
        refuted_if="the ratio's interval leaves out 10, or rates of ranks differ by more than 2",
        config="configs/studies/licences.py:lora",
        forms={
            "full": Form({"method": {"kind": "full"}}, FULL_RATES),
            "rank 1": lora(1),
            "rank 4": lora(4),
            "rank 16": lora(16),
            "rank 64": lora(64),
            # as many numbers as rank 4 of all matrices
            "attention, rank 11": lora(11, targets=ATTENTION),
        },
        sweep=Sweep(factor=2),
        stages=(Stage("sweep", seeds=(0, 1, 2)),),
        bases=MAKES,
        comparisons=(
            Ratio("rank 16", "full", 5, 20, published="9.8"),
            *(Ratio(f"rank {rank}", "rank 16", 0.5, 2, published="1") for rank in (1, 4, 64)),
            Comparison("rank 16", "full", margin=0.05, published="equal on small data"),
            Comparison("rank 16", "rank 1"),
            Comparison("rank 4", "attention, rank 11", published="attention alone loses"),
        ),
        # what ran before the fields of records were checked one by one, which changed no number
        accepted_code=("58ec10f14e894942",),
    )
