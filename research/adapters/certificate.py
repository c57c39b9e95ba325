"""Certificate of a merge: the adapter and the base that went in, and how far outputs moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.checkpoints.runs import Run
from research.config import schema
from research.runtime import files
from research.runtime import storage as paths

FILE = "certificate.json"


@dataclasses.dataclass(frozen=True)
class Ingredient:
    """A run that a merged model was made of."""

    path: str
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class MergedBase:
    """The base, which merging must not have changed."""

    path: str
    fingerprint_before: str
    fingerprint_after: str
    # how its weights are stored, such as ("nf4",)
    stored_as: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class MergeCertificate:
    """Lies beside a merged model as certificate.json, and in its metadata."""

    adapter: Ingredient
    # the method's config, as plain JSON
    method: Mapping[str, Any]
    base: MergedBase
    # the number type of the merge, in words
    merged_in: str
    # the batch that outputs were compared on, in words
    probe: str
    # of outputs before and after, and the largest output
    largest_difference: float
    largest_output: float

    @classmethod
    def of(cls, merged: Run) -> MergeCertificate:
        """The certificate of a merged model.

        Raises:
          ValueError: it has none.
        """
        content = merged.checkpoint.metadata().get("merged")
        if content is None:
            raise ValueError(f"{merged.path} is no merged model: it has no certificate")
        return schema.build(cls, content, f"{merged.path}: metadata.merged")

    def check_adapter(self, merged: Run, adapter: Run) -> None:
        """Refuses another adapter than the one that was merged.

        Raises:
          ValueError: naming both.
        """
        if self.adapter.fingerprint != adapter.fingerprint:
            raise ValueError(
                f"{merged.path} was merged from {self.adapter.path} with fingerprint "
                f"{self.adapter.fingerprint[:16]}, not from {adapter.path} with "
                f"{adapter.fingerprint[:16]}"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, as it lies on disk."""
        return schema.to_dict(self)

    def write(self, folder: str | Path) -> None:
        """Writes certificate.json."""
        files.write_json(paths.absolute(folder) / FILE, self.to_json())
