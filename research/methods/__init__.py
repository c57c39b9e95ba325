"""Tuning methods: what is attached to a base model, and what of all parameters trains.

A method is a frozen dataclass with `trains`, ordered (pattern, bool) rules over parameter names,
and `attach(model, key) -> model`, which returns a copy with filled sites. Adding one costs one
file and one line here.
"""

from research.methods.attaching import Method, derive_stacks, linears, merge, trainable
from research.methods.dora import DoRA
from research.methods.full import Full
from research.methods.ia3 import IA3
from research.methods.lora import LoRA
from research.methods.partial import Partial

METHODS: dict[str, type[Method]] = {
    "full": Full,
    "partial": Partial,
    "lora": LoRA,
    "dora": DoRA,
    "ia3": IA3,
}

__all__ = [
    "IA3",
    "METHODS",
    "DoRA",
    "Full",
    "LoRA",
    "Method",
    "Partial",
    "derive_stacks",
    "linears",
    "merge",
    "trainable",
]
