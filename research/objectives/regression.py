"""Say a number that belongs to a text."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import numpy as np

from research.objectives.labelled_text import LabelledText


@dataclasses.dataclass(frozen=True)
class Regression(LabelledText):
    """A head of one output (method classifier) says a text's number at its last token.

    A record has `text` and `label`, or `prompt` and `completion`: a number, or one as text. The
    loss is `squared_error`, in the numbers' own unit: numbers of about 1 learn best.
    """

    kind: Literal["regression"] = "regression"

    example_kind: ClassVar[str] = "numbers"
    label_type: ClassVar[type] = np.float32

    @property
    def head_outputs(self) -> int:
        return 1

    def read_label(self, value: Any) -> float:
        number = math.nan
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                number = math.nan
        if not abs(number) <= float(np.finfo(np.float32).max):
            raise ValueError(f"{value!r:.60} is no finite number, which a label of regression is")
        return number

    def describe(self, labels: np.ndarray) -> str:
        return f"numbers from {labels.min():g} to {labels.max():g}, mean {labels.mean():.3g}"
