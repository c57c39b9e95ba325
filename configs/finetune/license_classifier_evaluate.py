"""Asks a classifier of licence notices (license_classifier.py) the 718 notices of the test split.

    graft evaluate --config configs/finetune/license_classifier_evaluate.py --run runs/classifier

Expected: as license_classifier.py says.
Hardware: any.
"""

from ml_collections import ConfigDict

from configs import sources


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.tasks = dict(
        licence=dict(kind="classification", source=sources.license_notices(), split="test")
    )
    return config
