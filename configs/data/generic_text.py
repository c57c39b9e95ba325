"""Prepares the built-in text of five kinds: what the quickstart pretrains on, filtered.

    graft tokenizer --config configs/quickstart/pretrain.py \\
        --vocabulary 2048 --out runs/quickstart/tokenizer.json
    graft prepare --config configs/data/generic_text.py --out data/generic_text

Expected: 15,384 of 18,830 training documents stay, 14.4M tokens, in about 50 s; the same documents
on every run and with any number of workers. docs/guides/preparation.md has the counts by kind.
Hardware: two CPU cores (AVX-512), Python 3.11.
"""

from ml_collections import ConfigDict

from configs import sources


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.sources = sources.generic_text()
    # held out first: of two documents that are alike, the one that is trained on goes
    config.splits = ["heldout", "train"]
    config.tokenizer = "runs/quickstart/tokenizer.json"
    # the rules are made for prose: source code, verse and chat are none
    config.quality = dict(exempt=["graft_code", "graft_books", "graft_forum"])
    # small corpora: enough ranges for every core
    config.rows = 1024
    # nobody shall be tuned and tested on notices that were in the pretraining text
    test_notices = dict(source=dict(name="graft_licences"), splits=["test"])
    config.contamination = dict(evaluations=[test_notices])
    return config
