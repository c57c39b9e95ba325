"""What records look like that no objective can read as they are, and the setting that reads them.

Names of fields are not guessed: `input` is a question in one data set and a context in another.
"""

from collections.abc import Mapping
from typing import Any

_PAIR = 'fields={{"prompt": "{0}", "completion": "{1}"}}'
# Fields of a record -> what it looks like, and what to set in its source.
_PAIRS = (
    ("question", "answer"),
    ("input", "output"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("query", "response"),
    ("question", "response"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("problem", "solution"),
    ("source", "target"),
    ("context", "response"),
)
_LISTS = ("conversation", "dialog", "dialogue", "chat", "turns", "history", "conversations")


def explain_missing(record: Mapping[str, Any], field: str = "prompt") -> str:
    """What a record without `field` (of a pair, or messages) looks like, and how to read it."""
    if "chosen" in record and "rejected" in record:
        field = "messages" if isinstance(record["chosen"], list) else "completion"
        return (
            "It looks like a preference (chosen, rejected): learn from it with "
            'data.objective.kind="preference" and a loss such as loss.kind="dpo"; to train on the '
            f'chosen answers alone, set the source\'s fields={{"{field}": "chosen"}} and '
            'unused_fields=("rejected",).'
        )
    for name in ("messages", *_LISTS):
        if isinstance(record.get(name), str) and record[name].lstrip().startswith("["):
            return (
                f"Its {name!r} looks like messages as JSON text: read them with a transform of "
                "one's own (transforms, kind python)."
            )
        if isinstance(record.get(name), list):
            return (
                f"Its {name!r} looks like messages: set the source's "
                f'fields={{"messages": "{name}"}}.'
            )
    for names in _PAIRS:
        if all(isinstance(record.get(name), str) for name in names):
            return (
                f"It looks like a pair ({names[0]}, {names[1]}): set the source's "
                f"{_PAIR.format(*names)}, or write both with a transform (kind template)."
            )
    return (
        f"Name the right one in the source's `fields`, such as fields={{{field!r}: 'content'}} "
        "(numbers as labels: give `label_words`)."
    )
