"""Do large batches hurt LoRA more than full tuning?

graft study run experiments/lora_batch_size
graft study report experiments/lora_batch_size
"""

from configs.studies.licences import MAKES
from research.studies import Comparison, Form, Stage, Study, Sweep, Trend, axis, zipped


def get_study() -> Study:
    return Study(
        claim="LoRA falls behind full tuning as batches grow, at any rank",
        source="LoRA Without Regret (Schulman 2025), figure on batch size",
        refuted_if="LoRA's distance from full tuning is no larger with 64 rows than with 4",
        config="configs/studies/licences.py:lora",
        forms={
            "full": Form({"method": {"kind": "full"}}, (1e-3, 2e-3, 4e-3)),
            "LoRA": Form({}, (2.5e-3, 5e-3, 1e-2)),
        },
        # equal tokens
        axes=zipped(axis("data.batch_size", 4, 16, 64), axis("steps", 300, 75, 19)),
        sweep=Sweep(factor=2),
        stages=(
            Stage("screen", seeds=(0,), keep_values=2),
            Stage("confirm", seeds=(1, 2, 3, 4)),
        ),
        bases=MAKES,
        comparisons=(
            Trend("data.batch_size", 0, cells="LoRA", less="full", published="the distance grows"),
            Comparison("full", "LoRA"),
        ),
        # what ran before the fields of records were checked one by one, which changed no number
        accepted_code=("58ec10f14e894942", "f717666410cc895e"),
    )
