"""What the small studies ask of a model: held-out text of three kinds, and licence notices.

    graft evaluate --config configs/studies/evaluate.py --run runs/licences/lora

As in the quickstart, with fewer texts and questions. The texts are those that are the same for
every version of Python.
Expected, one seed: the quickstart's base 2.27 bits a byte and 4.2% [1.7, 9.6] of 240 notices right;
SmolLM2 1.38 and 32.9% [25.3, 45.9].
Hardware: two CPU cores, Python 3.11, jax 0.10.2.
"""

from ml_collections import ConfigDict

from configs.quickstart import evaluate


def get_config() -> ConfigDict:
    config = evaluate.get_config()
    config.text.sources = [
        dict(name=f"graft_{kind}") for kind in ("books", "encyclopedia", "forum")
    ]
    config.text.max_tokens = 20_000
    config.choice.max_questions = 240
    return config
