"""A step that takes the answer on which most candidates agree."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from research.config.schema import Positive
from research.evaluation.samples import find_majority
from research.evaluation.scorers import AnyScorer, Scorer
from research.evaluation.workflows.base import Ask, Candidate, Step


@dataclasses.dataclass(frozen=True)
class Vote(Step):
    """Of several candidates of a question, each of which takes all steps before by itself, the
    first of those that say what most say; only those that pass vote, if any do."""

    samples: Positive
    # how answers are read to be compared, such as dict(kind="numeric"); None: as they are
    scorer: AnyScorer | None = None
    kind: Literal["vote"] = "vote"

    @property
    def scorer_configs(self) -> Sequence[Scorer]:
        return () if self.scorer is None else (self.scorer,)

    @property
    def candidate_count(self) -> int:
        return self.samples

    def run(
        self, candidates: Sequence[Candidate], ask: Ask, records: Mapping[int, Mapping[str, Any]]
    ) -> list[Candidate]:
        groups: dict[int, list[Candidate]] = collections.defaultdict(list)
        for candidate in candidates:
            groups[candidate.question].append(candidate)
        return [self._choose(group) for group in groups.values()]

    def _choose(self, candidates: Sequence[Candidate]) -> Candidate:
        voters = [candidate for candidate in candidates if candidate.passes] or candidates
        return voters[find_majority([self._read(each.plain_text) for each in voters]).sample]

    def _read(self, text: str) -> str | None:
        return text.strip() if self.scorer is None else self.scorer.reading(text)
