"""House style: an encyclopedia's lead as an entry of a house's glossary.

    graft evaluate --task house_style --run runs/smollm2
    graft train --config configs/finetune/smollm2_task.py:house_style --workdir runs/house_style

The house's rules: the title in capitals and a colon, one sentence with one full stop, no brackets,
and what it is comes first, with its article. A program checks them (`check_rules`), and held-out
entries are compared with those that a program wrote from the same lead.

Questions: 400 leads of Wikipedia, none a near duplicate of the 7,152 of training. Licence:
CC-BY-SA-4.0.

Expected: SmolLM2-135M-Instruct as it is keeps all rules in none of the first 60, the title in none,
one sentence in 18%; after 40 steps of LoRA 43% [32, 57], 43% and 100% (docs/results/tasks.md).
"""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

INSTRUCTION = "Write the entry of our glossary for this article.\n\n{prompt}"


def check_rules(answer: str, record: Mapping[str, Any]) -> dict[str, float]:
    """Which of the house's rules an entry keeps; `all` of them."""
    entry = answer.strip()
    name, _, text = entry.partition(": ")
    rules = {
        "title": name == record["title"].upper(),
        "article": re.match(r"(an?|the|one) ", text) is not None,
        "sentence": "\n" not in entry and re.fullmatch(r"[^.]*(\.\S[^.]*)*\.", entry) is not None,
        "brackets": not re.search(r"[()\[\]]", entry) and bool(entry),
    }
    return {rule: float(is_kept) for rule, is_kept in rules.items()} | {
        "all": float(all(rules.values()))
    }


def source() -> dict[str, Any]:
    instruct = dict(kind="template", fields=dict(prompt=INSTRUCTION))
    return dict(name="graft_house_style", transforms=[instruct])


def get_config() -> ConfigDict:
    config = ConfigDict()
    rules = dict(
        kind="python",
        path="configs/tasks/house_style.py:check_rules",
        fields=["title"],
        name="rules",
    )
    config.tasks = dict(
        house_style=dict(
            kind="generation",
            source=source(),
            scorers=[rules, dict(kind="rouge_l"), dict(kind="exact_match")],
            max_tokens=96,
        )
    )
    return config
