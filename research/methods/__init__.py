"""Tuning methods: what is attached to a base model, and what of all parameters trains.

A method is a frozen dataclass with `trains`, ordered (pattern, bool) rules over parameter names,
and `attach(model, key) -> model`, which returns a copy with filled sites. One whose sites drop
units (`Context.adapter_dropout`) says `drops`. Adding one costs one file and one line here.
"""

from typing import TYPE_CHECKING

from research.methods.attach import (
    PLACES,
    WEIGHTED,
    abstract,
    attached,
    check_full_precision,
    check_untied,
    derive_stacks,
    linears,
    merge,
    merge_sites,
    places,
    single_layers,
    smaller_sides,
    switch_off,
    trainable,
    unmerge_sites,
    weight_of,
)
from research.methods.bank import Bank
from research.methods.base import Method
from research.methods.bottleneck import Bottleneck
from research.methods.dora import DoRA
from research.methods.full import Full
from research.methods.ia3 import IA3
from research.methods.loha import LoHa
from research.methods.lora import LoRA
from research.methods.members import MEMBERS
from research.methods.partial import Partial
from research.methods.prefix import Prefix
from research.methods.prompt import Prompt
from research.methods.several import Several
from research.methods.vera import VeRA

if TYPE_CHECKING:
    from research.text.tokenizer import Tokenizer

METHODS: dict[str, type[Method]] = MEMBERS | {"several": Several, "bank": Bank}


def adapter_names(method: Method) -> tuple[str, ...]:
    """The names under which its parts stand in sites, in the order in which they act."""
    return method.adapter_names


def bank_names(method: Method) -> tuple[str, ...]:
    """The names of the adapters that rows choose among; none of other methods."""
    return method.bank_names


def bind(method: Method, words: "Tokenizer") -> Method:
    """The method with what it takes of the tokenizer, such as the tokens of a prompt's text."""
    return method.bind(words)


__all__ = [
    "IA3",
    "METHODS",
    "PLACES",
    "Bank",
    "Bottleneck",
    "DoRA",
    "Full",
    "LoHa",
    "LoRA",
    "Method",
    "Partial",
    "Prefix",
    "Prompt",
    "Several",
    "VeRA",
    "WEIGHTED",
    "abstract",
    "adapter_names",
    "attached",
    "bank_names",
    "bind",
    "check_full_precision",
    "check_untied",
    "derive_stacks",
    "linears",
    "merge",
    "merge_sites",
    "places",
    "single_layers",
    "smaller_sides",
    "switch_off",
    "trainable",
    "unmerge_sites",
    "weight_of",
]
