"""Teaches SmolLM2-135M-Instruct to prefer the right licence of a notice to a wrong one, by DPO.

    graft convert import --from smollm2 --out runs/smollm2
    graft train --config configs/finetune/smollm2_dpo.py --workdir runs/smollm2_dpo

Expected: a first loss of ln 2 = 0.693, as the model is its own reference then. The rest was not
measured yet.
Hardware: two CPU cores, Python 3.11, jax 0.10.2.

`loss.kind` may be `ipo`, `simpo` or `orpo` with nothing else changed; `kto` reads answers that are
labelled one by one (docs/guides/preferences.md).
"""

import zlib
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import sources
from configs.finetune import smollm2_lora

LICENCES = ("apache-2.0", "bsd-3-clause", "gpl-2.0", "gpl-3.0", "lgpl-2.1", "mit", "mpl-2.0")


class WrongLicence:
    """Makes a pair of a notice: its licence, and another one drawn by the hash of the notice."""

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        text, label = record["text"], record["label"]
        others = [name for name in LICENCES if name != label]
        wrong = others[zlib.crc32(text.encode()) % len(others)]
        return {"prompt": text, "chosen": label, "rejected": wrong}


def get_config() -> ConfigDict:
    config = smollm2_lora.get_config()
    config.steps = 40
    config.loss = dict(kind="dpo", beta=0.1)
    path = f"{Path(__file__)}:WrongLicence"
    source = dict(name="graft_licences", transforms=[dict(kind="python", path=path)])
    template = sources.LICENSE_TEMPLATE
    config.data = dict(
        sources=[source],
        # each answer has half a row, with its own copy of the prompt
        objective=dict(kind="preference", of=dict(kind="supervised", template=template)),
        sequence_length=256,
        batch_size=8,
    )
    config.schedule = dict(learning_rate=2e-4, kind="cosine", warmup=4, final_share=0.0)
    config.evaluate_split = "validation"
    config.evaluate_tokens = 20_000
    return config
