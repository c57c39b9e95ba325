"""The quickstart's base, trained four times as long: what more pretraining is worth.

    graft tokenizer --config configs/quickstart/pretrain.py \\
        --vocabulary 2048 --out runs/quickstart/tokenizer.json
    graft train --config configs/studies/longer.py --workdir runs/studies/longer

Expected: 54 TFLOPs, four times those of configs/quickstart/pretrain.py; 1.97 bits a byte of books,
encyclopedia and forum (configs/studies/evaluate.py), where that one has 2.27. One seed.
Hardware: two CPU cores, Python 3.11, jax 0.10.2.
"""

from ml_collections import ConfigDict

from configs.quickstart import pretrain
from configs.studies import licences

BASE = "runs/studies/longer"
# what a study changes to start from it
START = {"init_from": BASE}
# command lines of this base and what it needs
MAKES = licences.MAKES | {BASE: f"graft train --config configs/studies/longer.py --workdir {BASE}"}


def get_config() -> ConfigDict:
    config = pretrain.get_config()
    config.steps = 1280
    return config
