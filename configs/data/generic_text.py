"""Prepares the built-in text of five kinds: what the quickstart pretrains on, filtered.

    graft tokenizer --config configs/quickstart/pretrain.py \\
        --vocabulary 2048 --out runs/quickstart/tokenizer.json
    graft prepare --config configs/data/generic_text.py --out data/generic_text

Numbers of a run: docs/data_preparation.md.
"""

from ml_collections import ConfigDict

KINDS = ("code", "books", "encyclopedia", "forum", "web")


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.sources = [dict(name=f"graft_{kind}") for kind in KINDS]
    # held out first: of two that are alike, the one that is trained on goes
    config.splits = ["heldout", "train"]
    config.tokenizer = "runs/quickstart/tokenizer.json"
    # the rules are made for prose: source code, verse and chat are none
    config.quality = dict(exempt=["graft_code", "graft_books", "graft_forum"])
    # small corpora: enough ranges for every core
    config.rows = 1024
    # nobody shall be tuned and tested on notices that were in the pretraining text
    licences = dict(name="graft_licences")
    config.contamination = dict(evaluations=[dict(source=licences, splits=["test"])])
    return config
