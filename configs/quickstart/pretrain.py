"""Pretrains the quickstart's base: a small Llama shape on five kinds of generic text.

    graft tokenizer --config configs/quickstart/pretrain.py \\
        --vocabulary 2048 --out runs/quickstart/tokenizer.json
    graft train --config configs/quickstart/pretrain.py \\
        --workdir runs/quickstart/pretrain

Expected: 1.57M parameters, 13.5 TFLOPs, 171 s. Bits per byte of held-out text: code 2.02, books
2.45, encyclopedia 2.22, forum 2.12, web 2.14. One seed; the range over repeats was not measured.
Hardware: two CPU cores (AVX-512), Python 3.11, jax 0.10.2.
"""

from ml_collections import ConfigDict

from configs import shapes, sources

TOKENIZER = "runs/quickstart/tokenizer.json"
# max_scan_layers: layers one by one, fastest on CPU
MODEL = dict(shapes.QUICKSTART, max_scan_layers=1)


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 320
    config.tokenizer = TOKENIZER
    config.model = MODEL

    # the five kinds in equal parts; no kind is read twice
    config.data = dict(sources=sources.generic_text(), sequence_length=256, batch_size=16)

    # refuses to train on a text that evaluate.py holds out
    config.checks = dict(splits=("heldout",))

    # Muon for the matrices of layers, Adam for the rest
    config.optimizer = dict(kind="muon")
    config.schedule = dict(
        kind="wsd", learning_rate=8e-3, warmup=20, final_share=0.0, decay_share=0.4
    )
    config.weight_decay = 0.1
    config.weight_decay_rules = [(r".*(scale|embedding/kernel)", 0.0)]

    config.checkpoint = dict(every=160)
    return config
