"""`adapter_config.json` of methods that attach to weights: written from a method, and read."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import Any

from research.interop.fields import UnsupportedModelError
from research.methods import IA3, DoRA, LoHa, LoRA, Method, VeRA
from research.methods.oft import OFT


def write(method: Method, scales: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """The fields of `adapter_config.json` for a method.

    Args:
      scales: rank and alpha of each module, by transformers' name; the commonest need no pattern.
    """
    if isinstance(method, IA3):
        return {"peft_type": "IA3", "feedforward_modules": []}
    if isinstance(method, OFT):
        return {
            "peft_type": "OFT",
            "r": 0,
            "oft_block_size": method.block_size,
            "use_cayley_neumann": False,
            "bias": "none",
        }
    if isinstance(method, VeRA):
        return {
            "peft_type": "VERA",
            "r": method.rank,
            "d_initial": method.inner,
            "save_projection": True,
            "projection_prng_key": 0,
            "bias": "none",
        }
    rank = _commonest([r for r, _ in scales.values()])
    alpha = _commonest([a for _, a in scales.values()])
    patterns = {
        "rank_pattern": {name: r for name, (r, _) in scales.items() if r != rank},
        "alpha_pattern": {name: a for name, (_, a) in scales.items() if a != alpha},
    }
    if isinstance(method, LoHa):
        return {"peft_type": "LOHA", "r": rank, "alpha": alpha, **patterns}
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        **patterns,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": isinstance(method, DoRA),
    }


def read(
    content: Mapping[str, Any], where: str, modules: Mapping[str, str], sides: Mapping[str, int]
) -> tuple[Method, dict[str, int]]:
    """The method that an `adapter_config.json` describes, and the rank that it gives each linear.

    A product whose rank is over its weight's smaller side becomes one of that side's rank.

    Args:
      modules: transformers' module of each linear that has tensors.
      sides: the smaller side of each linear's weight.

    Raises:
      UnsupportedModelError: a kind or a setting that Graft does not have.
    """
    targets = place_patterns(list(modules))
    kind = content.get("peft_type")
    if kind == "IA3":
        return IA3(targets), {}
    if kind == "OFT":
        return _read_oft(content, where, targets), {}
    alpha_key = "alpha" if kind == "LOHA" else "lora_alpha"
    rank, alpha = content.get("r"), content.get(alpha_key, 1 if kind == "VERA" else None)
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or alpha <= 0:
        raise UnsupportedModelError(f"{where}: r is {rank!r} and {alpha_key} {alpha!r}")
    if kind == "VERA":
        return VeRA(targets, rank=rank), {}
    each: dict[str, tuple[int, float]] = {}
    for ours, theirs in modules.items():
        r = _by_pattern(content.get("rank_pattern"), theirs, rank, f"{where}: rank_pattern")
        a = _by_pattern(content.get("alpha_pattern"), theirs, alpha, f"{where}: alpha_pattern")
        each[ours] = int(r), float(a * r**0.5 if content.get("use_rslora") else a)
    if kind == "LOHA":
        if len(set(each.values())) > 1:
            raise UnsupportedModelError(
                f"{where}: rank_pattern and alpha_pattern; Graft's LoHa has none"
            )
        rank, alpha = next(iter(each.values()))
        return LoHa(targets, rank, alpha), dict.fromkeys(modules, rank)
    file_ranks = {ours: rank for ours, (rank, _) in each.items()}
    for ours, (r, a) in each.items():
        fitting = min(r, sides[ours])
        each[ours] = fitting, a * fitting / r  # the same scale
    # the commonest go without a pattern
    rank = _commonest([r for r, _ in each.values()])
    alpha = _commonest([a for _, a in each.values()])
    method = DoRA if content.get("use_dora") else LoRA
    ranks = _rules({ours: r for ours, (r, _) in each.items() if r != rank})
    alphas = _rules({ours: a for ours, (_, a) in each.items() if a != alpha})
    return method(targets, rank=rank, alpha=alpha, ranks=ranks, alphas=alphas), file_ranks


def _read_oft(content: Mapping[str, Any], where: str, targets: tuple[str, ...]) -> OFT:
    if content.get("use_cayley_neumann", True):
        raise UnsupportedModelError(
            f"{where}: use_cayley_neumann sums a few terms of a series; Graft's OFT is "
            "exact. Merge it in PEFT"
        )
    for name in ("coft", "block_share"):
        if content.get(name):
            raise UnsupportedModelError(
                f"{where}: {name} is {content[name]!r}; Graft's OFT has none"
            )
    size = content.get("oft_block_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UnsupportedModelError(
            f"{where}: oft_block_size is {size!r}; Graft's OFT needs one size"
        )
    return OFT(targets, block_size=size)


def _by_pattern(patterns: Any, name: str, default: Any, where: str) -> Any:
    """PEFT's number for a module: that of the first key that matches the end of its name.

    Keys are regular expressions to PEFT; here they are names in which `.*` stands for anything,
    because a hostile one could take forever to match.
    """
    if not isinstance(patterns or {}, Mapping):
        raise UnsupportedModelError(f"{where} is no object")
    for pattern, number in (patterns or {}).items():
        plain = pattern.removeprefix("^").removesuffix("$")
        if not re.fullmatch(r"(\w|\.\*|\\\.|\.)+", plain):
            raise UnsupportedModelError(
                f"{where}: {pattern!r} is more than a module's name with .* in places; write it out"
            )
        plain = plain.replace("\\.", ".").replace(".*", "*")
        is_whole = fnmatch.fnmatchcase(name, plain)
        if is_whole or (fnmatch.fnmatchcase(name, f"*.{plain}") and not pattern.startswith("^")):
            if not isinstance(number, int | float) or isinstance(number, bool) or number <= 0:
                raise UnsupportedModelError(f"{where}: {pattern} is {number!r}")
            return number
    return default


def _commonest(values: list[Any]) -> Any:
    return max(sorted(set(values)), key=values.count)


def _rules(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Patterns for places, by value."""
    rules = []
    for value in sorted(set(values.values())):
        names = [name for name, own in values.items() if own == value]
        rules += [(pattern, value) for pattern in place_patterns(names)]
    return tuple(rules)


def place_patterns(names: list[str]) -> tuple[str, ...]:
    """The shortest patterns for these linears: one for each place, with its layers."""
    layers: dict[str, list[int]] = {}
    outside = []
    for name in names:
        if not name.startswith("layers/"):
            outside.append(re.escape(name))
            continue
        _, layer, place = name.split("/", 2)
        layers.setdefault(place, []).append(int(layer))
    return (
        *outside,
        *(
            rf"layers/({'|'.join(map(str, sorted(numbers)))})/{re.escape(place)}"
            for place, numbers in sorted(layers.items())
        ),
    )
