"""What the quickstart asks of each model: five kinds of held-out text, and licence notices.

    graft evaluate --config configs/quickstart/evaluate.py --run runs/quickstart/lora
    graft evaluate --config configs/quickstart/evaluate.py \\
        --run runs/quickstart/pretrain --config.choice.shots=4
"""

from ml_collections import ConfigDict

from configs.quickstart import pretrain, tune


def get_config(how: str = "zero_shot") -> ConfigDict:
    config = ConfigDict()
    config.text = dict(
        sources=[dict(name=f"graft_{kind}") for kind in pretrain.KINDS],
        split="heldout",
        max_tokens=40_000,
        sequence_length=256,
        batch_size=32,
    )
    config.choice = dict(
        source=dict(name="graft_licences", fields=dict(prompt="text", completion="label")),
        objective=dict(template=tune.TEMPLATE),
        split="test",
        sequence_length=128,
    )
    if how == "few_shot":  # worked examples in front of the question, as far as the base can read
        config.choice.shots = 3
        config.choice.sequence_length = 256
    elif how != "zero_shot":
        raise ValueError(f"evaluate.py:{how}: there are zero_shot and few_shot")
    return config
