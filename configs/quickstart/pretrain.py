"""Pretrains the quickstart's base: a small Llama shape on five kinds of generic text.

    python -m research.train_tokenizer --config configs/quickstart/pretrain.py \\
        --vocabulary 4096 --out runs/quickstart/tokenizer.json
    python -m research.train --config configs/quickstart/pretrain.py \\
        --workdir runs/quickstart/pretrain
"""

from ml_collections import ConfigDict

RUNS = "runs/quickstart"
KINDS = ("code", "books", "encyclopedia", "forum", "web")


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 400
    config.tokenizer = f"{RUNS}/tokenizer.json"

    config.model = dict(
        vocabulary=4096,
        width=256,
        layers=4,
        heads=4,
        key_heads=2,
        hidden=704,
        # fastest on CPU: attention in row blocks, layers one by one
        attention="blocked",
        longest_stack=1,
    )

    # the five kinds in equal parts: every kind is read less than twice
    config.data = dict(
        sources=[dict(name=f"graft_{kind}") for kind in KINDS],
        sequence_length=256,
        batch_size=32,
    )

    # Muon for the matrices of layers, Adam for the rest
    config.optimizer = dict(name="muon")
    config.schedule = dict(kind="wsd", rate=4e-3, warmup=20, final_share=0.0, decay_share=0.4)
    config.decay = 0.1
    config.decay_rules = [(r".*(scale|embedding/kernel)", 0.0)]

    config.evaluate_split = "heldout"
    config.checkpoint = dict(every=200)
    return config
