"""What the quickstart asks of each model: five kinds of held-out text, and licence notices.

    graft evaluate --config configs/quickstart/evaluate.py --run runs/quickstart/lora
    graft evaluate --config configs/quickstart/evaluate.py \\
        --run runs/quickstart/pretrain --config.choice.shots=4

Expected: the base alone 6.4% [3.7, 12.8] of 718 notices right, the same with three worked examples;
tuned models as in tune.py, texts as in pretrain.py. One seed, 95% intervals over notices.
Hardware: two CPU cores (AVX-512), Python 3.11, jax 0.10.2.
"""

from ml_collections import ConfigDict

from configs import sources


def get_config(variant: str = "zero_shot") -> ConfigDict:
    config = ConfigDict()
    config.text = dict(
        sources=sources.generic_text(),
        split="heldout",
        max_tokens=40_000,
        sequence_length=256,
        batch_size=32,
    )
    config.choice = dict(
        source=sources.license_notices(),
        objective=dict(template=sources.LICENSE_TEMPLATE),
        split="test",
        sequence_length=128,
    )
    # worked examples in front of the question, as far as the base can read
    if variant == "few_shot":
        config.choice.shots = 3
        config.choice.sequence_length = 256
    elif variant != "zero_shot":
        raise ValueError(f"evaluate.py:{variant}: there are zero_shot and few_shot")
    return config
