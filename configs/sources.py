"""Tasks and texts that several configs share: sources, templates, splits.

Each function makes new dicts, so that a config may change what it got.
"""

from typing import Any

# the five kinds of built-in text; research/data/builders has a dataset of each
TEXT_KINDS = ("code", "books", "encyclopedia", "forum", "web")
# how a licence notice is asked, in training and in evaluation
LICENSE_TEMPLATE = "Notice:\n{prompt}\nLicence: "
# the labels of these notices
LICENSES = tuple(
    (
        "agpl-3.0 agpl-3.0-plus apache-2.0 bsd-new bsd-simplified cc-by-3.0 cc-by-4.0 "
        "cc-by-sa-3.0 cc0-1.0 commercial-license epl-1.0 gpl-1.0-plus gpl-2.0 gpl-2.0-plus "
        "gpl-3.0 gpl-3.0-plus lgpl-2.0-plus lgpl-2.1 lgpl-2.1-plus lgpl-3.0 mit mpl-2.0 "
        "other-permissive proprietary-license warranty-disclaimer"
    ).split()
)


def generic_text() -> list[dict[str, Any]]:
    """The five kinds of built-in text as sources."""
    return [dict(name=f"graft_{kind}") for kind in TEXT_KINDS]


def license_notices() -> dict[str, Any]:
    """Notices labelled with one of 25 licences as a source of prompts and completions."""
    return dict(name="graft_licences", fields=dict(prompt="text", completion="label"))


def license_tuning(batch_size: int) -> dict[str, Any]:
    """`config.data` of a run that learns to name the licence of a notice."""
    return dict(
        sources=[license_notices()],
        objective=dict(kind="supervised", template=LICENSE_TEMPLATE),
        # longer notices are cut, answers never
        sequence_length=128,
        batch_size=batch_size,
    )
