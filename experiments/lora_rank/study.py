"""How much rank does LoRA need?

graft study run experiments/lora_rank
graft study report experiments/lora_rank
"""

from configs.studies.licences import MAKES
from research.studies import Comparison, Form, Stage, Study, Sweep

RANKS = (1, 2, 4, 16, 64)


def get_study() -> Study:
    return Study(
        claim="Rank 1 is close to rank 64 on an easy task",
        source="Hu 2021, arXiv:2106.09685, table 6: WikiSQL, all four attention matrices, "
        "73.4 at rank 1, 73.7 at 4, 73.5 at 64",
        refuted_if="rank 64 has a held-out loss that is lower by more than 0.05 nats",
        config="configs/studies/licences.py:lora",
        changes={"method.targets": (r"layers/\d+/attention/\w+",)},
        forms={f"rank {rank}": Form({"method.rank": rank}) for rank in RANKS},
        sweep=Sweep((1e-3, 3e-3, 1e-2)),
        stages=(
            Stage("screen", seeds=(0,), changes={"steps": 75}, keep_values=2),
            Stage("confirm", seeds=(1, 2, 3, 4)),
        ),
        bases=MAKES,
        comparisons=tuple(
            Comparison("rank 64", f"rank {rank}", margin=0.05) for rank in RANKS[:-1]
        ),
        # what ran before the fields of records were checked one by one, which changed no number
        accepted_code=("58ec10f14e894942",),
    )
