"""The quickstart's base, pretrained with another objective on as many tokens of the same text.

    graft tokenizer --config configs/quickstart/pretrain.py \\
        --vocabulary 2048 --out runs/quickstart/tokenizer.json
    graft train --config configs/studies/objectives.py:masked --workdir runs/objectives/masked

Markers are control characters, one token each, as this tokenizer has no special ones for them.

Expected: each reads 1.30M tokens; last losses 3.97 (causal, prefix-LM), 4.02 (fill-in-the-middle),
3.01 (span corruption), 3.78 (UL2), 5.17 (masked), of unlike targets: they do not compare. One seed.
What each is worth for a labelled task is what experiments/pretraining_objectives says.
Hardware: two CPU cores, Python 3.11, jax 0.10.2.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.quickstart import pretrain

SENTINEL = "\x02{number}\x02"
OBJECTIVES: dict[str, dict[str, Any]] = {
    "causal": dict(kind="causal"),
    "prefix_lm": dict(kind="prefix_lm"),
    "fill_in_the_middle": dict(
        kind="fill_in_the_middle", prefix="\x03", suffix="\x04", middle="\x05"
    ),
    "span_corruption": dict(kind="span_corruption", sentinel=SENTINEL),
    "ul2": dict(
        kind="ul2",
        sentinel=SENTINEL,
        denoisers=(
            dict(mode="\x06", rate=0.15, mean_span=3.0),
            dict(mode="\x06", rate=0.15, mean_span=8.0),
            dict(mode="\x07"),
            dict(mode="\x08", rate=0.5, mean_span=3.0),
            dict(mode="\x08", rate=0.5, mean_span=8.0),
            dict(mode="\x08", rate=0.15, mean_span=64.0),
            dict(mode="\x08", rate=0.5, mean_span=64.0),
        ),
    ),
    "masked": dict(kind="masked", mask="\x01"),
}


def get_config(objective: str = "causal") -> ConfigDict:
    if objective not in OBJECTIVES:
        raise ValueError(f"objectives.py:{objective}: there are {', '.join(OBJECTIVES)}")
    config = pretrain.get_config()
    config.data.objective = OBJECTIVES[objective]
    return config
