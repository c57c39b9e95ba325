"""Keys that configs had before: what is on disk under an old name is read under the new one.

Runs, checkpoints and config files that were written before a key was renamed still open. This is
the one place that knows the old names and forms; `research.config.schema.build` applies it.
"""

from collections.abc import Mapping
from typing import Any

_MODEL = {
    "hidden": "mlp_width",
    "key_heads": "kv_heads",
    "longest_stack": "max_scan_layers",
    "tied": "tie_embeddings",
}
# the class that is built -> dotted path of an old key -> its new name; * stands for every element
RENAMED: Mapping[str, Mapping[str, str]] = {
    "Experiment": {
        "decay": "weight_decay",
        "decay_rules": "weight_decay_rules",
        "rate_rules": "learning_rate_rules",
        "clip": "max_grad_norm",
        "accumulate": "accumulation_steps",
        "site_dropout": "adapter_dropout",
        "most_skipped": "max_skipped",
        "schedule.rate": "learning_rate",
        "compute.longest_stack": "max_scan_layers",
        "data.mixture.most_epochs": "max_epochs",
        "data.sources.*.most_epochs": "max_epochs",
        "method.hidden": "mlp_width",
        "method.of.hidden": "mlp_width",
        "method.of.*.hidden": "mlp_width",
        **{f"model.{old}": new for old, new in _MODEL.items()},
    },
    "ModelConfig": _MODEL,
    "Method": {"hidden": "mlp_width", "of.hidden": "mlp_width", "of.*.hidden": "mlp_width"},
    "Evaluation": {
        "text.most_tokens": "max_tokens",
        "choice.most_questions": "max_questions",
    },
    "PreparationConfig": {
        **{
            f"quality.most_{name}": f"max_{name}"
            for name in (
                *("words", "symbols", "bullet_lines", "ellipsis_lines", "repeated_lines"),
                *("repeated_paragraphs", "repeated_line_characters", "common_ngram"),
                *("repeated_paragraph_characters", "repeated_ngrams"),
            )
        },
        **{
            f"quality.fewest_{name}": f"min_{name}"
            for name in ("words", "letter_words", "stop_words")
        },
        "contamination.fewest_words": "min_words",
    },
}
# the class that is built -> where the data's config lies in it
_DATA: Mapping[str, list[str]] = {"Experiment": ["data"], "DataConfig": []}
# the class that is built -> where sources lie in it
_SOURCES: Mapping[str, tuple[list[str], ...]] = {
    "Experiment": (
        *(["data", "sources", "*"], ["start_data", "sources", "*"]),
        ["phases", "*", "rollouts", "task", "source"],
    ),
    "DataConfig": (["sources", "*"],),
    "Evaluation": (
        ["text", "sources", "*"],
        *(["choice", "source"], ["source"], ["tasks", "*", "source"]),
        ["tasks", "*", "retrieval", "source"],
    ),
    "PreparationConfig": (["sources", "*"], ["contamination", "evaluations", "*", "source"]),
}
# kinds of sources that shared one class, in which each had the keys of all
_KINDS = ("tfds", "jsonl", "parquet", "text", "prepared")
_TOKENS = "its documents are tokens already: set it where they were prepared."
# key -> what it is where it says nothing, the kinds that have it, why the others do not
_OF_KINDS: Mapping[str, tuple[Any, tuple[str, ...], str]] = {
    "fields": ({}, _KINDS[:-1], _TOKENS),
    "format": (None, _KINDS[:-1], _TOKENS),
    "label_words": ([], _KINDS[:-1], _TOKENS),
    "bad_lines": (0, _KINDS[:-1], _TOKENS),
    "transforms": ([], _KINDS[:-1], _TOKENS),
    "kinds": ([], _KINDS[-1:], "only what was prepared has them."),
}
# constants that all optimizers had, when they shared one class -> the kinds that use them
_OF_OPTIMIZERS: Mapping[str, tuple[str, ...]] = {
    "b1": ("adamw", "lion", "muon"),
    "b2": ("adamw", "lion", "muon"),
    "epsilon": ("adamw", "muon"),
}
# the class that is built -> the class that it adds fields to
_EXTENDED = {"PhasedExperiment": "Experiment"}
# logical axes in `sharding_rules`
RENAMED_AXES = {"key_heads": "kv_heads"}


def upgrade(mapping: Any, name: str) -> Any:
    """A config (nested dicts and lists), with old keys under their new names.

    Args:
        mapping: what `schema.build` was given, as plain JSON types; changed in place.
        name: the class that it is of, a key of RENAMED.
    """
    name = _EXTENDED.get(name, name)
    for path, new in RENAMED.get(name, {}).items():
        *parents, old = path.split(".")
        for holder in _find(mapping, parents):
            if old in holder and new not in holder:
                holder[new] = holder.pop(old)
    for holder in _find(mapping, _DATA.get(name, ["?"])):
        _join_objective(holder)
    if name == "Experiment":
        for loss in _find(mapping, ["loss"]):
            loss.setdefault("kind", "cross_entropy")  # for a time there was no other
    for parents in _SOURCES.get(name, ()):
        for holder in _find(mapping, parents):
            _drop_other_kinds(holder)
    if name == "Experiment" and isinstance(mapping, dict) and "optimizer" in mapping:
        mapping["optimizer"] = _optimizer(mapping["optimizer"])
    rules = mapping.get("sharding_rules") if isinstance(mapping, dict) else None
    for rule in rules if isinstance(rules, list) else ():
        if isinstance(rule, list) and rule and isinstance(rule[0], str):
            rule[0] = RENAMED_AXES.get(rule[0], rule[0])
    return mapping


def _join_objective(data: dict[str, Any]) -> None:
    """One mapping with a `kind`, where there was a name and beside it `objective_settings`.

    Raises:
        ValueError: such settings beside an objective that is written the new way.
    """
    settings, objective = data.pop("objective_settings", None), data.get("objective")
    if isinstance(objective, str) or (objective is None and settings is not None):
        data["objective"] = {"kind": objective or "causal", **(settings or {})}
    elif settings:
        key = next(iter(settings))
        raise ValueError(
            f"data.objective_settings.{key} is data.objective.{key} now: the settings of an "
            "objective stand beside its kind."
        )


def _optimizer(optimizer: Any) -> Any:
    """A mapping with a `kind`, where there was a `name`, beside constants that it may not have; a
    kind alone stands for its defaults."""
    if isinstance(optimizer, str):
        return {"kind": optimizer}
    if not isinstance(optimizer, dict) or ("kind" in optimizer and "name" not in optimizer):
        return optimizer
    kind = optimizer.get("name", "adamw")
    constants = {key: value for key, value in optimizer.items() if key not in ("kind", "name")}
    for key, kinds in _OF_OPTIMIZERS.items():
        if kind not in kinds:
            constants.pop(key, None)
    return {"kind": kind, **constants}


def _drop_other_kinds(source: dict[str, Any]) -> None:
    """Only the keys of its own kind, where a source had those of every kind; the kind is said.

    Raises:
        ValueError: a key of another kind that says something.
    """
    kind = source.setdefault("kind", "tfds")
    for key, (empty, kinds, why) in _OF_KINDS.items():
        if kind in _KINDS and kind not in kinds and key in source:
            if source[key] != empty:
                raise ValueError(
                    f"Source {source.get('name')!r} of kind {kind!r} has no {key}: {why}"
                )
            del source[key]


def current_path(path: str, name: str) -> str:
    """The path of an override, such as `data.sources[0].max_epochs`, with old keys renamed."""
    keys = path.split(".")
    for old_path, new in RENAMED.get(_EXTENDED.get(name, name), {}).items():
        old_keys = [key for key in old_path.split(".") if key != "*"]
        if [key.partition("[")[0] for key in keys] == old_keys:
            return ".".join([*keys[:-1], new])
    return path


def _find(node: Any, path: list[str]) -> list[dict[str, Any]]:
    """Every dict at a path."""
    if path and path[0] == "*":
        nodes = node if isinstance(node, list) else []
        if isinstance(node, dict):
            nodes = list(node.values())
        return [match for child in nodes for match in _find(child, path[1:])]
    if not isinstance(node, dict):
        return []
    return _find(node.get(path[0]), path[1:]) if path else [node]
