"""Studies: many runs of one config, each once, compared.

from research.studies import Form, Stage, Study, Sweep, axis, product
"""

from research.studies.axes import Axes, axis, chain, product, sample, zipped
from research.studies.study import Comparison, Equal, Form, Stage, Study, Sweep

__all__ = [
    "Axes",
    "Comparison",
    "Equal",
    "Form",
    "Stage",
    "Study",
    "Sweep",
    "axis",
    "chain",
    "product",
    "sample",
    "zipped",
]
