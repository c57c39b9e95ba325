"""Arithmetic: sums in words, whose last number is the answer (GSM8K).

    graft evaluate --task arithmetic --run runs/smollm2 --config.tasks.arithmetic.max_questions=100

Questions: 1,319, for evaluation only: their package states no licence. Licence: not stated.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.tasks = dict(
        arithmetic=dict(
            kind="generation",
            source=dict(name="graft_arithmetic"),
            scorers=[dict(kind="numeric", after="####|answer is")],
            max_tokens=256,
        )
    )
    return config
