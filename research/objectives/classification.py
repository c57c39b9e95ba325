"""Say which of some classes a text is of."""

import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np

from research.config.suggestions import suggestion
from research.objectives.labelled_text import LabelledText


@dataclasses.dataclass(frozen=True)
class Classification(LabelledText):
    """A head (method classifier) says a text's class at its last token; cross-entropy is its loss.

    A record has `text` and `label`, or `prompt` and `completion`: the label is the name of a class,
    or its number from 0.
    """

    # The names of the classes, in the order of the head's outputs.
    labels: tuple[str, ...] = ("0", "1")

    kind: Literal["classification"] = "classification"

    example_kind: ClassVar[str] = "classes"
    label_type: ClassVar[type] = np.int32

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels: two different classes at least, not {self.labels}.")

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labels

    @property
    def head_outputs(self) -> int:
        return len(self.labels)

    def read_label(self, value: Any) -> int:
        if isinstance(value, str):
            if value not in self.labels:
                near = suggestion(value, self.labels)
                raise ValueError(f"{value!r:.60} is none of the objective's `labels`{near:.300}")
            return self.labels.index(value)
        if type(value) is not int:
            raise ValueError(
                f"a class is a name or a number from 0, not {value!r:.60}; numbers to be predicted "
                'are of data.objective.kind="regression"'
            )
        if not 0 <= value < len(self.labels):
            raise ValueError(
                f"{value} is no class: there are {len(self.labels)} `labels`, counted from 0"
            )
        return value

    def describe(self, labels: np.ndarray) -> str:
        counts = np.bincount(labels, minlength=len(self.labels))
        missing = [name for name, n in zip(self.labels, counts, strict=True) if not n]
        text = f"{len(self.labels)} classes"
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            text += f" (no example of {', '.join(missing[:3])}{more})"
        return text
