"""Law: which of 25 licences a notice names.

    graft evaluate --task law --run runs/quickstart/lora
    graft evaluate --config configs/tasks/law.py:nearest --run runs/smollm2 \\
        --config.tasks.law.max_questions=100

`nearest` first shows the four notices of training that are most like a question (BM25), with their
licences; `--config.tasks.law.retrieval=None` asks the same questions without them.

Questions: 718 notices of ScanCode's licence database, none a near duplicate of training text.
Licence: CC-BY-4.0.
Expected: of the quickstart's models as docs/results/quickstart.md says; SmolLM2 24% [15, 36] of 100
and 46% [34, 61] behind the nearest notices (docs/results/tasks.md).
Hardware: any.
"""

from ml_collections import ConfigDict

from configs import sources

LICENCES = (
    "agpl-3.0", "agpl-3.0-plus", "apache-2.0", "bsd-new", "bsd-simplified", "cc-by-3.0",
    "cc-by-4.0", "cc-by-sa-3.0", "cc0-1.0", "commercial-license", "epl-1.0", "gpl-1.0-plus",
    "gpl-2.0", "gpl-2.0-plus", "gpl-3.0", "gpl-3.0-plus", "lgpl-2.0-plus", "lgpl-2.1",
    "lgpl-2.1-plus", "lgpl-3.0", "mit", "mpl-2.0", "other-permissive", "proprietary-license",
    "warranty-disclaimer",
)  # fmt: skip
NOTICE = "Notice:\n{prompt}\nLicence:"


def get_config(way: str = "") -> ConfigDict:
    config = ConfigDict()
    if way == "nearest":
        config.tasks = dict(law=_nearest())
        return config
    if way:
        raise ValueError(f"law.py:{way}: there is nearest")
    config.choice = dict(
        source=sources.license_notices(),
        objective=dict(template=sources.LICENSE_TEMPLATE),
        sequence_length=256,
    )
    return config


def _nearest() -> dict:
    """The licences as options, behind examples that are found by the notice's words."""
    instruct = dict(kind="template", fields=dict(prompt=NOTICE))
    retrieval = dict(
        kind="bm25",
        source=sources.license_notices(),
        passages=4,
        max_tokens=512,
        passage_template="Notice:\n{text}\nLicence: {completion}",
        contamination="leave_out",
    )
    return dict(
        kind="multiple_choice",
        source=sources.license_notices() | dict(transforms=[instruct]),
        labels=LICENCES,
        reference="completion",
        delimiter=" ",
        with_end=True,
        retrieval=retrieval,
    )
