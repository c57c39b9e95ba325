"""Classifies licence notices by a head on the quickstart's base.

    graft train --config configs/finetune/license_classifier.py:lora --workdir runs/classifier
    graft evaluate --config configs/finetune/license_classifier_evaluate.py --run runs/classifier
    graft convert export --from runs/classifier --out exports/classifier

`lora` tunes the base with it, `full` all of it, and `frozen` the head alone.

Expected, of 718 test notices, with 95% intervals over notices: lora 56.5% [50.5, 64.1] right, full
67.0% [61.9, 73.0], frozen 26.5% [20.7, 38.9]. One seed; 110 to 300 s of a machine that had other
work too.
Hardware: two CPU cores (AVX-512), Python 3.11, jax 0.10.2.
"""

from ml_collections import ConfigDict

from configs import sources

# the rates of the quickstart's tunes (configs/quickstart/tune.py); the head's own was not tuned
RATES = {"lora": 2.5e-3, "full": 4e-3, "frozen": 2e-2}
BASES = {"lora": [dict(kind="lora", rank=16, alpha=32.0)], "full": [dict(kind="full")]}


def get_config(variant: str = "lora") -> ConfigDict:
    if variant not in RATES:
        raise ValueError(f"license_classifier.py:{variant}: there are {', '.join(RATES)}")
    head = dict(kind="classifier", outputs=len(sources.LICENSES))
    config = ConfigDict()
    config.init_from = "runs/quickstart/pretrain"
    config.steps = 300
    config.method = head
    if variant in BASES:
        config.method = dict(kind="several", of=[*BASES[variant], head])
    config.data = dict(
        sources=[sources.license_notices()],
        objective=dict(
            kind="classification",
            labels=sources.LICENSES,
            template=sources.LICENSE_TEMPLATE.replace("{prompt}", "{text}"),
        ),
        # longer notices are cut, the template never
        sequence_length=128,
        batch_size=16,
    )
    # refuses to train on a notice that is asked for
    config.checks = dict(splits=("validation", "test"))
    config.schedule = dict(kind="cosine", learning_rate=RATES[variant], warmup=10, final_share=0.0)
    config.evaluate_split = "validation"
    return config
