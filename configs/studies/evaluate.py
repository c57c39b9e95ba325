"""What the small studies ask of a model: held-out text of three kinds, and licence notices.

    graft evaluate --config configs/studies/evaluate.py --run runs/licences/lora

The texts are those that are the same for every version of Python.
Expected: bits per byte of the base: books 2.45, encyclopedia 2.22, forum 2.12.
Hardware: two CPU cores, Python 3.11, jax 0.10.2.
"""

from ml_collections import ConfigDict

from configs import tasks


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.text = dict(
        sources=[dict(name=f"graft_{kind}") for kind in ("books", "encyclopedia", "forum")],
        split="heldout",
        max_tokens=20_000,
        sequence_length=256,
        batch_size=32,
    )
    config.choice = dict(
        source=tasks.license_notices(),
        objective=dict(template=tasks.LICENSE_TEMPLATE),
        split="test",
        max_questions=240,
        sequence_length=128,
    )
    return config
