"""What tuning did to the weights: intruder dimensions, and the rank of the update.

Shuttleworth 2024, arXiv:2410.21228 (intruders); Biderman 2024, arXiv:2405.09673, section 5 (rank).
"""

import numpy as np

from research.adapters.merging import Merged
from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.experiment import Experiment

# of each matrix: how many singular vectors are looked at, and below which cosine one is new
TOP, COSINE = 10, 0.5
# share of the update's squared norm that its rank holds
ENERGY = 0.9


def changes_of_weights(run: Run, experiment: Experiment) -> dict[str, float]:
    """Means over all matrices [D,F] of layers.

    intruders: top singular vectors of the tuned matrix that resemble none of the base's.
    update_rank: singular values that hold 90% of the update's squared norm.
    update_norm: the update's norm over the base's.
    """
    base = runs.open_run(experiment.init_from or "")
    tuned_weight, base_weight = Merged(run), Merged(base)
    intruders, ranks, norms = [], [], []
    for name in sorted(base.checksums()):
        if not (name.startswith("layers/") and name.endswith("kernel")):
            continue
        before, after = base_weight(name), tuned_weight(name)
        left_before = np.linalg.svd(before, full_matrices=False)[0]
        left_after = np.linalg.svd(after, full_matrices=False)[0]
        cosines = np.abs(left_after[:, :TOP].T @ left_before).max(axis=1)
        intruders.append(int((cosines < COSINE).sum()))
        energy = np.cumsum(np.linalg.svd(after - before, compute_uv=False) ** 2)
        if energy[-1] > 0:  # a matrix that a method leaves alone has no update
            ranks.append(int(np.searchsorted(energy, ENERGY * energy[-1])) + 1)
        norms.append(float(np.linalg.norm(after - before) / np.linalg.norm(before)))
    return {
        "intruders": float(np.mean(intruders)),
        "update_rank": float(np.mean(ranks)) if ranks else 0.0,
        "update_norm": float(np.mean(norms)),
    }
