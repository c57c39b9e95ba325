"""Objectives: how documents or examples become rows of a `Batch`. One file each."""

from research.objectives.base import Objective
from research.objectives.causal import Causal
from research.objectives.chat import Chat
from research.objectives.fill_in_the_middle import FillInTheMiddle
from research.objectives.masked import Masked
from research.objectives.prefix_lm import PrefixLM
from research.objectives.span_corruption import SpanCorruption
from research.objectives.supervised import Supervised

OBJECTIVES: dict[str, type[Objective]] = {
    "causal": Causal,
    "fill_in_the_middle": FillInTheMiddle,
    "masked": Masked,
    "prefix_lm": PrefixLM,
    "span_corruption": SpanCorruption,
    "chat": Chat,
    "supervised": Supervised,
}
