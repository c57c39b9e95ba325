"""The modules that an `adapter_config.json` targets: `target_modules` and what narrows it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from research.checkpoints.runs import Run
from research.interop.fields import UnsupportedModelError
from research.interop.peft.joined import TargetModules
from research.models.config import ModelConfig

# A regular expression in which nothing that repeats is repeated, and little repeats at all: any
# other could take forever to match.
_BOUNDED = re.compile(r"(?:\\[.bdw]|[\w.|()^$]|\[[\w-]+\]|\(\?:|(?<!\))[*+?])*")
_MOST_REPEATS = 5
_NUMBERED = re.compile(r"(?:^|\.)([^.]+)\.(\d+)\.")  # the list of layers, and the layer
ENDS = (("embedding",), ("head",))  # no linears to PEFT's all-linear


def check(
    content: Mapping[str, Any],
    modules: Mapping[str, tuple[str, ...]],
    names: Collection[str],
    where: str,
) -> None:
    """Refuses an adapter that lacks tensors of a module that its config names, or has too many.

    Args:
      modules: those of the base by transformers' names, and Graft's linears in each.
      names: those of them that have tensors.

    Raises:
      UnsupportedModelError: naming the first.
    """
    if not names:
        raise UnsupportedModelError(f"{where} holds no tensors of an adapter")
    _check_layers(content, where)
    if content.get("target_modules") is None:
        return  # PEFT's own choice for the architecture; what it writes says which that was
    targets = target_names(content, modules, where)
    missing = [name for name in modules if name in targets and name not in names]
    if missing:
        raise UnsupportedModelError(
            f"{where} lacks all tensors of {missing[0]}, which target_modules names "
            f"({len(missing)} of {len(targets)} modules are missing)"
        )
    surplus = [name for name in modules if name in names and name not in targets]
    if surplus:
        raise UnsupportedModelError(
            f"{where} has tensors of {surplus[0]}, which target_modules does not name "
            f"({len(surplus)} such modules)"
        )


def _check_layers(content: Mapping[str, Any], where: str) -> None:
    """Refuses what PEFT refuses, of some kinds, or passes over, of others."""
    layers, pattern = content.get("layers_to_transform"), content.get("layers_pattern")
    if pattern and layers is None:
        raise UnsupportedModelError(
            f"{where}: layers_pattern is {pattern!r} and there is no layers_to_transform, without "
            "which it says nothing: write the layers, or take it out"
        )
    if isinstance(content.get("target_modules"), str) and (pattern or layers not in (None, [])):
        raise UnsupportedModelError(
            f"{where}: layers_to_transform narrows a list of target_modules alone, and that is "
            f"{content['target_modules']!r}: write a list, or the layers in the pattern"
        )


def target_names(
    content: Mapping[str, Any], modules: Mapping[str, tuple[str, ...]], where: str
) -> set[str]:
    """The modules that PEFT would attach to, by transformers' names."""
    targets, layers = content["target_modules"], content.get("layers_to_transform")
    if targets == "all-linear":
        names = {name for name, linears in modules.items() if linears not in ENDS}
    else:
        matches = _matcher(targets, f"{where}: target_modules")
        names = {name for name in modules if matches(name)}
    if isinstance(targets, list) and layers not in (None, []):
        lists = content.get("layers_pattern") or []
        lists = [lists] if isinstance(lists, str) else lists
        numbers = [layers] if isinstance(layers, int) else layers

        def is_inside(name: str) -> bool:
            place = _NUMBERED.search(name)
            return place is not None and (
                int(place[2]) in numbers and (not lists or place[1] in lists)
            )

        names = {name for name in names if name in targets or is_inside(name)}
    if exclusions := content.get("exclude_modules"):
        matches = _matcher(exclusions, f"{where}: exclude_modules")
        names = {name for name in names if not matches(name)}
    copied = content.get("modules_to_save") or []
    return {name for name in names if not any(f".{one}." in f".{name}." for one in copied)}


def _matcher(targets: Any, where: str) -> Callable[[str], bool]:
    """A match as PEFT's: a text is a regular expression for whole names, a list has names or their
    ends."""
    if isinstance(targets, list) and all(isinstance(name, str) for name in targets):
        return lambda name: any(name == end or name.endswith(f".{end}") for end in targets)
    if not isinstance(targets, str):
        raise UnsupportedModelError(f"{where} is {targets!r}; give names in a list")
    repeats = sum(targets.count(sign) for sign in "*+?")
    if not _BOUNDED.fullmatch(targets) or repeats > _MOST_REPEATS:
        raise UnsupportedModelError(
            f"{where}: {targets!r} could take forever to match; write the names out in a list"
        )
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise UnsupportedModelError(f"{where}: {targets!r} is no pattern: {error}") from None
    return lambda name: pattern.fullmatch(name) is not None


def check_tied(
    content: Mapping[str, Any], model: ModelConfig, modules: TargetModules, where: str
) -> None:
    """Refuses an adapter of a table that PEFT also applies to the head."""
    if not (content.get("ensure_weight_tying") and model.tie_embeddings):
        return
    if content.get("target_modules") is None:
        return
    for name in target_names(content, modules.linears, where):
        if modules.linears[name] in ENDS:
            raise UnsupportedModelError(
                f"{where}: ensure_weight_tying makes the adapter of {name} act in table and head "
                "both; merge it in PEFT"
            )


def scales_input(module: str, inputs: Any, where: str) -> bool:
    """Whether IA3 scales a module's input: whether it is among `feedforward_modules`."""
    if not isinstance(inputs or [], list):
        raise UnsupportedModelError(
            f"{where}: feedforward_modules is {inputs!r}; give names in a list"
        )
    return any(module == name or module.endswith(f".{name}") for name in inputs or [])


def scaled_linear(module: str, modules: TargetModules, base: Run, where: str) -> str:
    """The linear whose output is the input that IA3 scales: of a gated MLP's last linear that is
    the output of the one that is not activated."""
    place = modules.linears[module][0]
    if not (place.endswith("mlp/down") and base.model.gated):
        raise UnsupportedModelError(
            f"{where}: the input of {module} is scaled; Graft's IA3 scales outputs, and takes the "
            "last linear of a gated MLP besides"
        )
    return f"{place.removesuffix('down')}up"
