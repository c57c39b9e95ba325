"""Pretrains the quickstart's base: a small Llama shape on five kinds of generic text.

    graft tokenizer --config configs/quickstart/pretrain.py \\
        --vocabulary 2048 --out runs/quickstart/tokenizer.json
    graft train --config configs/quickstart/pretrain.py \\
        --workdir runs/quickstart/pretrain
"""

from ml_collections import ConfigDict

KINDS = ("code", "books", "encyclopedia", "forum", "web")
TOKENIZER = "runs/quickstart/tokenizer.json"
MODEL = dict(
    vocabulary=2048,
    width=192,
    layers=3,
    heads=3,
    kv_heads=1,
    mlp_width=512,
    # fastest on CPU: layers one by one
    max_scan_layers=1,
)


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 320
    config.tokenizer = TOKENIZER
    config.model = MODEL

    # the five kinds in equal parts; no kind is read twice
    config.data = dict(
        sources=[dict(name=f"graft_{kind}") for kind in KINDS],
        sequence_length=256,
        batch_size=16,
    )

    # refuses to train on a text that evaluate.py holds out
    config.checks = dict(splits=("heldout",))

    # Muon for the matrices of layers, Adam for the rest
    config.optimizer = dict(name="muon")
    config.schedule = dict(
        kind="wsd", learning_rate=8e-3, warmup=20, final_share=0.0, decay_share=0.4
    )
    config.weight_decay = 0.1
    config.weight_decay_rules = [(r".*(scale|embedding/kernel)", 0.0)]

    config.checkpoint = dict(every=160)
    return config
