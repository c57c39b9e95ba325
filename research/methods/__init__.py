"""Tuning methods: what is attached to a base model, and what of all parameters trains.

A method is a frozen dataclass, a `Method` (base.py); what it puts into sites is a `Delta`. Adding
one costs its file and a line in members.py.
"""

from research.methods.adalora import AdaLoRA
from research.methods.attach import (
    PLACES,
    WEIGHTED,
    check_full_precision,
    linears,
    trainable,
    weight_of,
)
from research.methods.bank import Bank
from research.methods.base import Delta, Method
from research.methods.bottleneck import Bottleneck
from research.methods.classifier import Classifier
from research.methods.dora import DoRA
from research.methods.ewc import EWC
from research.methods.full import Full
from research.methods.ia3 import IA3
from research.methods.l2_sp import L2SP
from research.methods.lisa import LISA
from research.methods.loha import LoHa
from research.methods.lora import LoRA
from research.methods.merge import check_untied, merge, merge_sites, switch_off, unmerge_sites
from research.methods.partial import Partial
from research.methods.prefix import Prefix
from research.methods.prompt import Prompt
from research.methods.registry import METHODS
from research.methods.several import Several
from research.methods.stacks import abstract, derive_stacks, single_layers, smaller_sides
from research.methods.vera import VeRA
from research.models.sites import places

__all__ = [
    "EWC",
    "IA3",
    "METHODS",
    "PLACES",
    "AdaLoRA",
    "Bank",
    "Bottleneck",
    "Classifier",
    "Delta",
    "DoRA",
    "Full",
    "L2SP",
    "LISA",
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
