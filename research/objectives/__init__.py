"""Objectives: how documents or examples become rows of a `Batch`. One file each."""

from typing import Any

from research.config.schema import by_kind, one_of
from research.objectives.base import Objective
from research.objectives.causal import Causal
from research.objectives.chat import Chat
from research.objectives.classification import Classification
from research.objectives.fill_in_the_middle import FillInTheMiddle
from research.objectives.labelled_answers import LabelledAnswers
from research.objectives.masked import Masked
from research.objectives.preference import Preference
from research.objectives.prefix_lm import PrefixLM
from research.objectives.regression import Regression
from research.objectives.rollouts import Rollouts
from research.objectives.span_corruption import SpanCorruption
from research.objectives.supervised import Supervised
from research.objectives.ul2 import UL2

OBJECTIVES: dict[str, type[Objective]] = by_kind(
    Causal,
    FillInTheMiddle,
    Masked,
    PrefixLM,
    SpanCorruption,
    UL2,
    Chat,
    Supervised,
    Classification,
    Regression,
    Preference,
    LabelledAnswers,
    Rollouts,
)

# One of them, told apart by its `kind`.
ObjectiveConfig: Any = one_of(OBJECTIVES.values())
