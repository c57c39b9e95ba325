"""Objectives: how documents or examples become rows of a `Batch`. One file each."""

from typing import Any

from research.config.schema import one_of
from research.objectives.base import Objective
from research.objectives.causal import Causal
from research.objectives.chat import Chat
from research.objectives.fill_in_the_middle import FillInTheMiddle
from research.objectives.masked import Masked
from research.objectives.prefix_lm import PrefixLM
from research.objectives.span_corruption import SpanCorruption
from research.objectives.supervised import Supervised
from research.objectives.ul2 import UL2

OBJECTIVES: dict[str, type[Objective]] = {
    "causal": Causal,
    "fill_in_the_middle": FillInTheMiddle,
    "masked": Masked,
    "prefix_lm": PrefixLM,
    "span_corruption": SpanCorruption,
    "ul2": UL2,
    "chat": Chat,
    "supervised": Supervised,
}

# One of them, told apart by its `kind`.
ObjectiveConfig: Any = one_of(OBJECTIVES.values())
