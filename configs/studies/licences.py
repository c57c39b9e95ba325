"""The quickstart's base tuned on licence notices, in short runs: what small studies repeat.

    graft tokenizer --config configs/quickstart/pretrain.py \\
        --vocabulary 2048 --out runs/quickstart/tokenizer.json
    graft train --config configs/quickstart/pretrain.py --workdir runs/quickstart/pretrain
    graft train --config configs/studies/licences.py:lora --workdir runs/licences/lora
    graft train --config configs/studies/licences.py:full --workdir runs/licences/full

A run reads 142k tokens, a third of the notices. Studies that start here: experiments/lora_matrices,
lora_rank, lora_learning_rates, lora_batch_size, lora_forgetting. They make the base where it is not
there (3 minutes).

Expected, at the best rate of those tried, held-out loss in nats over three seeds (`graft study show
experiments/lora_learning_rates`): full 0.27 [0.20, 0.34] at 4e-3, LoRA of rank 16 0.42 [0.28, 0.57]
at 5e-3.
Hardware: two CPU cores, Python 3.11, jax 0.10.2.
"""

from ml_collections import ConfigDict

from configs.quickstart import pretrain, tune

# command lines of what the studies start from
MAKES = {
    pretrain.TOKENIZER: "graft tokenizer --config configs/quickstart/pretrain.py "
    f"--vocabulary 2048 --out {pretrain.TOKENIZER}",
    tune.BASE: f"graft train --config configs/quickstart/pretrain.py --workdir {tune.BASE}",
}


def get_config(variant: str = "lora") -> ConfigDict:
    config = tune.get_config(variant)
    config.steps = 150
    config.data.batch_size = 8
    # what rates are chosen by: the loss of the labels of other notices
    config.evaluate_split = "validation"
    config.evaluate_tokens = 20_000
    config.checks.splits = ("test",)
    return config
