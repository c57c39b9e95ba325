"""Labelled formats: which one records have, and what objectives read of them.

A format adds to a record `prompt` and `completion`, or `messages`: a conversation as a list of
`{"role": ..., "content": ...}` with the roles of `base.ROLES`, and what else a message
says; a conversation may bring `tools` and `template_arguments`. The first format in `FORMATS`
that a record looks like is its format; a new one is one file and one line there. Preferences are
`chosen` and `rejected` with a `prompt`, or conversations of both.
"""

from research.data.sources.formats.base import ROLES, Format, Record
from research.data.sources.formats.classification import CLASSIFICATION
from research.data.sources.formats.conversations import MESSAGE_PAIR, MESSAGES, SHAREGPT
from research.data.sources.formats.pairs import ALPACA, PAIR
from research.data.sources.formats.plain import OTHER, TEXT
from research.data.sources.formats.preferences import LABELLED_ANSWERS, PREFERENCE
from research.data.sources.formats.rollouts import ROLLOUTS
from research.data.sources.formats.squad import SQUAD
from research.data.sources.formats.unread import (
    UnusedFields,
    check_fields,
    check_overwritten,
)

__all__ = [
    "FORMATS",
    "OF_OBJECTIVES",
    "ROLES",
    "RULES",
    "Format",
    "Record",
    "UnusedFields",
    "check_fields",
    "check_overwritten",
    "name_format",
]

# Raise it when other records are refused than before: tokens that were made of them are old.
RULES = 4
# Fields that objectives read of examples.
OF_OBJECTIVES = frozenset(
    "text prompt completion messages tools template_arguments chosen rejected".split()
)

FORMATS: dict[str, Format] = {
    "messages": MESSAGES,
    "sharegpt": SHAREGPT,
    "prompt+completion messages": MESSAGE_PAIR,
    "prompt+completion": PAIR,
    "alpaca": ALPACA,
    "squad": SQUAD,
    "classification": CLASSIFICATION,
    "text": TEXT,
    "preference": PREFERENCE,
    "labelled answers": LABELLED_ANSWERS,
    "rollouts": ROLLOUTS,
    "other": OTHER,
}


def name_format(record: Record) -> str:
    """The name of the first format that the record looks like."""
    return next(name for name, form in FORMATS.items() if form.matches(record))
