"""Objectives: how documents or examples become rows of a `Batch`. One file each."""

from research.objectives.base import Objective
from research.objectives.causal import Causal
from research.objectives.chat import Chat
from research.objectives.supervised import Supervised

OBJECTIVES: dict[str, type[Objective]] = {
    "causal": Causal,
    "chat": Chat,
    "supervised": Supervised,
}
