"""What a run reads, and how it becomes batches: the part `data` of an experiment."""

import collections
import dataclasses
import hashlib

import numpy as np

from research.config.schema import Count, Positive
from research.data.mixture import MixtureConfig
from research.data.sources import AnySourceConfig
from research.objectives import Causal, ObjectiveConfig


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
        for source in self.sources:
            if not source.weight > 0 or not np.isfinite(source.weight):
                raise ValueError(
                    f"The weight of source {source.name!r} must be positive, not {source.weight}: "
                    "leave a source out to not read it."
                )

    def source_seed(self, name: str) -> int:
        """32 bits for one source, so that another source in the list changes nothing in it.

        They are the same in every process (Python's own hash is not).
        """
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        return int.from_bytes(digest[:4], "big")
