"""Scorers in files of one's own."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from research.config.functions import digest_function, load_function, split_function
from research.config.user_code import errors_with_line
from research.evaluation.scorers.base import Scorer, Scores


@dataclasses.dataclass(frozen=True)
class Python(Scorer):
    """A function of a file of one's own: `score(answer, record)` gives a number, or metric ->
    number."""

    # `path/to/file.py:function`
    path: str
    # fields of a record that it reads
    fields: tuple[str, ...] = ("completion",)
    name: str = ""
    kind: Literal["python"] = "python"
    runs_code = True

    def __post_init__(self) -> None:
        split_function(self.path, "path")

    @property
    def label(self) -> str:
        return self.name or self.path.rpartition(":")[2]

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(self.fields)

    @property
    def key(self) -> Any:
        return super().key | {"path": digest_function(self.path, "path")}

    def score(self, answer: str, record: Mapping[str, Any]) -> Scores:
        with errors_with_line(self.path.rpartition(":")[0]):
            result = _load(self.path)(answer, dict(record))
        values = result if isinstance(result, Mapping) else {"": result}
        for metric, value in values.items():
            is_number = isinstance(value, int | float) and math.isfinite(value)
            if not isinstance(metric, str) or not is_number:
                raise ValueError(
                    f"{self.path} must return a number, or names and numbers, not {result!r:.60}"
                )
        return Scores({f"{self.label}/{n}".removesuffix("/"): float(v) for n, v in values.items()})


@functools.lru_cache(maxsize=64)
def _load(path: str) -> Callable[..., Any]:
    return load_function(path, "path")
