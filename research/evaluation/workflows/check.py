"""A step that looks at answers, and has the model try again where they are not right."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from research.config.schema import Count
from research.evaluation.scorers import AnyScorer, Scorer
from research.evaluation.scorers.json_schema import JsonSchema
from research.evaluation.workflows.base import Ask, Candidate, Step

# Characters of an error that are told: what a schema says of a value may be as long as it.
_MAX_ERROR = 400


@dataclasses.dataclass(frozen=True)
class Check(Step):
    """An answer passes where every metric of a scorer is 1; one that does not is told why.

    A check does not know the right answer: a `json` scorer looks at the schema alone, and those
    that need a reference are refused.
    """

    scorer: AnyScorer
    # how often the model may try again
    retries: Count = 0
    # what it is told then; {error} stands for what is wrong
    message: str = "That is not right: {error}. Answer again."
    kind: Literal["check"] = "check"

    def __post_init__(self) -> None:
        if "{error}" not in self.message:
            raise ValueError("message: it does not say what is wrong; write {error} in it")
        if self._blind.reference is not None:
            raise ValueError(
                f"scorer: {self.scorer.kind} reads the right answer, which a check must not know: "
                "check with json, pattern, ifeval or python"
            )

    @property
    def _blind(self) -> Scorer:
        """The scorer without the right answer, where it can do without."""
        if isinstance(self.scorer, JsonSchema):
            return dataclasses.replace(self.scorer, reference=None)
        return self.scorer

    @property
    def scorer_configs(self) -> Sequence[Scorer]:
        return (self._blind,)

    def run(
        self, candidates: Sequence[Candidate], ask: Ask, records: Mapping[int, Mapping[str, Any]]
    ) -> list[Candidate]:
        result = list(candidates)
        errors = {
            number: error
            for number, candidate in enumerate(candidates)
            if (error := self._error(candidate, records))
        }
        for _ in range(self.retries):
            if not errors:
                break
            replies = [
                result[number].reply(self.message.replace("{error}", error))
                for number, error in errors.items()
            ]
            for number, candidate in zip(list(errors), ask(replies), strict=True):
                result[number] = candidate
                errors[number] = self._error(candidate, records)
            errors = {number: error for number, error in errors.items() if error}
        return [
            dataclasses.replace(candidate, passes=number not in errors)
            for number, candidate in enumerate(result)
        ]

    def _error(self, candidate: Candidate, records: Mapping[int, Mapping[str, Any]]) -> str:
        """What is wrong with an answer; empty: nothing."""
        scores = self._blind.score(candidate.plain_text, records[candidate.question])
        missed = [name for name, value in scores.values.items() if value < 1]
        if not (missed or scores.unreadable):
            return ""
        error = scores.unreadable or scores.remark or f"it fails {', '.join(missed)}"
        return error[:_MAX_ERROR]
