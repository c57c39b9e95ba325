"""Law: which of 25 licences a notice names.

    graft evaluate --task law --run runs/quickstart/lora

Questions: 718 notices of ScanCode's licence database, none a near duplicate of training text.
Licence: CC-BY-4.0.
Expected: of the quickstart's models as docs/results/quickstart.md says.
Hardware: any.
"""

from ml_collections import ConfigDict

from configs import sources


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.choice = dict(
        source=sources.license_notices(),
        objective=dict(template=sources.LICENSE_TEMPLATE),
        sequence_length=256,
    )
    return config
