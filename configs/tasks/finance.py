"""Finance: people, organizations and places of a loan agreement's sentence, as JSON.

    graft evaluate --task finance --run runs/smollm2
    graft train --config configs/finetune/smollm2_task.py:finance --workdir runs/finance
    graft evaluate --config configs/tasks/finance.py:constrained --run runs/smollm2
    graft evaluate --config configs/tasks/finance.py:retry --run runs/smollm2

`constrained` lets through what is of the schema alone; `retry` says what is wrong, twice at most.

Questions: 250 sentences, none a near duplicate of the 539 of training; `ner_finance` of OpenAI's
evals. Licence: MIT.
"""

from typing import Any

from ml_collections import ConfigDict

INSTRUCTION = (
    "List the named entities of this sentence of a loan agreement, as JSON with the keys people, "
    "organizations and places, each a list of names.\n\n{prompt}"
)
KEYS = ("people", "organizations", "places")
SCHEMA = {
    "type": "object",
    "properties": {key: {"type": "array", "items": {"type": "string"}} for key in KEYS},
    "required": list(KEYS),
    "additionalProperties": False,
}

CHECK = dict(kind="check", scorer=dict(kind="json", schema=SCHEMA, fenced=True), retries=2)
# How an answer comes about.
WAYS: dict[str, dict[str, Any]] = {
    "": {},
    "constrained": dict(constraint=dict(kind="json_schema", schema=SCHEMA)),
    "retry": dict(workflow=[dict(kind="draft"), CHECK]),
}


def source() -> dict[str, Any]:
    instruct = dict(kind="template", fields=dict(prompt=INSTRUCTION))
    return dict(name="graft_entities", transforms=[instruct])


def get_config(way: str = "") -> ConfigDict:
    if way not in WAYS:
        raise ValueError(f"finance.py:{way}: there are {', '.join(filter(None, WAYS))}")
    config = ConfigDict()
    config.tasks = dict(
        finance=dict(
            kind="generation",
            source=source(),
            scorers=[dict(kind="json", schema=SCHEMA, fenced=True)],
            max_tokens=160,
            **WAYS[way],
        )
    )
    return config
