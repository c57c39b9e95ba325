"""The quickstart's base tuned on licence notices, in short runs: what small studies repeat.

    graft tokenizer --config configs/quickstart/pretrain.py \\
        --vocabulary 2048 --out runs/quickstart/tokenizer.json
    graft train --config configs/quickstart/pretrain.py --workdir runs/quickstart/pretrain
    graft train --config configs/studies/licences.py:lora --workdir runs/licences/lora
    graft train --config configs/studies/licences.py:full --workdir runs/licences/full

A run reads 154k tokens, a third of the notices. Studies that start here: experiments/lora_matrices,
experiments/lora_rank. They make the base where it is not there (3 minutes).

Expected: not measured yet, the studies have not run. Two short pilots of LoRA of rank 1 on
attention, 75 steps, ended at a held-out loss of 1.97 nats with a rate of 0.01 and 2.91 with 0.03.
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
