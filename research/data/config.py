"""What a run reads, and how it becomes batches: the part `data` of an experiment."""

import collections
import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np

from research.config.schema import Count, Positive
from research.config.suggestions import suggestion
from research.data.mixture import MixtureConfig
from research.data.sources import AnySourceConfig
from research.objectives import Causal, Objective, ObjectiveConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read, and how it becomes batches."""

    sources: tuple[AnySourceConfig, ...]
    # Tokens in a row (S).
    sequence_length: Positive
    # Rows in a global batch (B), over all hosts.
    batch_size: Positive
    # What is learned from the sources, such as dict(kind="supervised", template="{prompt}\n").
    objective: ObjectiveConfig = dataclasses.field(default_factory=Causal)
    # Source -> what is learned from it in place of `objective`, such as dict(books=dict(
    # kind="causal")): text that is rehearsed beside what is taught. The model is asked, and its
    # template checked, by `objective`.
    objectives: Mapping[str, ObjectiveConfig] = dataclasses.field(default_factory=dict)
    # Whether a row may hold several documents; if not, each piece has a row of its own.
    pack: bool = True
    # How the sources' weights become shares of the rows, and when these change.
    mixture: MixtureConfig = dataclasses.field(default_factory=MixtureConfig)
    # Decides packing and order.
    seed: int = 0
    # The batch that the run's first step reads: where an earlier run on the same data ended.
    first_batch: Count = 0

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("At least one source is needed.")
        names = collections.Counter(source.name for source in self.sources)
        if len(names) < len(self.sources):
            raise ValueError(f"The source {names.most_common(1)[0][0]!r} is listed twice.")
        for name in self.objectives:
            if name not in names:
                raise ValueError(
                    f"objectives: there is no source {name!r}{suggestion(name, names)}"
                )
        for source in self.sources:
            if not source.weight > 0 or not np.isfinite(source.weight):
                raise ValueError(
                    f"The weight of source {source.name!r} must be positive, not {source.weight}: "
                    "leave a source out to not read it."
                )

    def objective_of(self, source: str) -> Objective:
        """What is learned from the source of this name."""
        return self.objectives.get(source, self.objective)

    @property
    def all_objectives(self) -> list[Objective]:
        """That of every source."""
        return [self.objective_of(source.name) for source in self.sources]

    def source_seed(self, name: str) -> int:
        """32 bits for one source, so that another source in the list changes nothing in it.

        They are the same in every process (Python's own hash is not).
        """
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        return int.from_bytes(digest[:4], "big")
