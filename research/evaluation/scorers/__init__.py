"""What is measured of an answer in words: one file a kind, chosen in a config by `kind`."""

from typing import Any

from research.config.schema import by_kind, one_of
from research.evaluation.scorers.base import Scorer, Scores
from research.evaluation.scorers.code import Code
from research.evaluation.scorers.exact_match import ExactMatch
from research.evaluation.scorers.ifeval import IfEval
from research.evaluation.scorers.json_schema import JsonSchema
from research.evaluation.scorers.numeric import Numeric
from research.evaluation.scorers.pattern import Pattern
from research.evaluation.scorers.python import Python
from research.evaluation.scorers.rouge_l import RougeL
from research.evaluation.scorers.token_f1 import TokenF1

__all__ = ["SCORERS", "AnyScorer", "Scorer", "Scores"]

SCORERS: dict[str, type[Scorer]] = by_kind(
    ExactMatch,
    TokenF1,
    RougeL,
    Numeric,
    Pattern,
    JsonSchema,
    IfEval,
    Code,
    Python,
)
# One of them, told apart by its `kind`.
AnyScorer: Any = one_of(SCORERS.values())
