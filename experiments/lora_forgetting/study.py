"""What LoRA learns less of, and forgets less of, as it reads more.

graft study run experiments/lora_forgetting
graft study report experiments/lora_forgetting
"""

from configs.studies.licences import MAKES
from research.studies import Comparison, Form, Stage, Study, Sweep, Trend, axis

FULL_RATES, LORA_RATES = (1e-3, 2e-3, 4e-3), (2.5e-3, 5e-3, 1e-2)
MEASURES = "experiments/lora_forgetting/measures.py:changes_of_weights"


def get_study() -> Study:
    return Study(
        claim="LoRA learns less than full tuning, the more so the more tokens it reads, and "
        "forgets less",
        source="LoRA Learns Less and Forgets Less (Biderman 2024, arXiv:2405.09673); intruder "
        "dimensions: Shuttleworth 2024, arXiv:2410.21228",
        refuted_if="LoRA's loss is no higher at most tokens, or its text no better kept",
        config="configs/studies/licences.py:lora",
        forms={
            "full": Form({"method": {"kind": "full"}}, FULL_RATES),
            "rank 4": Form({"method.rank": 4}, LORA_RATES),
            "rank 16": Form({"method.rank": 16}, LORA_RATES),
            "rank 64": Form({"method.rank": 64}, LORA_RATES),
        },
        axes=axis("steps", 50, 150, 450),
        sweep=Sweep(factor=2),
        stages=(
            Stage("screen", seeds=(0,), evaluated=False),
            Stage("confirm", seeds=(1, 2, 3)),
        ),
        bases=MAKES,
        evaluation="configs/studies/evaluate.py",
        measures=(MEASURES,),
        comparisons=(
            Comparison("full", "rank 16", published="full ahead on code and mathematics"),
            Trend("steps", 0, cells="rank 16", less="full", published="the distance grows"),
            Comparison("rank 16", "full", metric="forgetting", published="LoRA forgets less"),
            Comparison(
                "rank 16",
                "full",
                metric="intruders",
                goal="lowest",
                published="low rank has more intruders",
            ),
        ),
    )
