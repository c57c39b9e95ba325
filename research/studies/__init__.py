"""Studies: many runs of one config, each once, compared.

from research.studies import Form, Stage, Study, Sweep, axis, product
"""

from research.studies.answers import Answer
from research.studies.axes import SEED_KEYS, Axes, axis, chain, product, sample, variants, zipped
from research.studies.comparisons import Comparison, Ratio, Trend
from research.studies.study import Equal, Form, Stage, Study, Sweep

__all__ = [
    "SEED_KEYS",
    "Answer",
    "Axes",
    "Comparison",
    "Equal",
    "Form",
    "Ratio",
    "Stage",
    "Study",
    "Sweep",
    "Trend",
    "axis",
    "chain",
    "variants",
    "product",
    "sample",
    "zipped",
]
