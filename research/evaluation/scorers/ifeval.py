"""Whether an answer follows instructions that a program can check."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from research.config.suggestions import suggestion
from research.evaluation.scorers.base import Scorer, Scores
from research.runtime import unique_json

# in place of an answer, to find out which verifiers run here
_PROBE = "One sentence. Another ONE."
# an instruction that counts sentences, and settings of it
_NEEDS_SPLITTER = (
    "length_constraints:number_sentences",
    '{"num_sentences": 1, "relation": "at least"}',
)


@dataclasses.dataclass(frozen=True)
class IfEval(Scorer):
    """Instructions followed, as IFEval counts them (Zhou 2023, arXiv:2311.07911, section 2).

    `ifeval/prompt_strict` is 1 where an answer follows all its instructions, and
    `ifeval/instruction_strict` the share of instructions followed, each counted alike over all
    answers; `_loose` takes an answer also without its first line, its last, or its asterisks. The
    verifiers are those of the package if-verifiable. One that does not run, for lack of a sentence
    splitter, is no part of the scores and is counted, and so is a prompt that has one.

    A record has `instruction_id_list` and `kwargs`, a mapping of settings for each instruction, or
    these as JSON.
    """

    name: str = ""
    kind: Literal["ifeval"] = "ifeval"

    layer = "evaluate"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"instruction_id_list", "kwargs"})

    @property
    def machine_key(self) -> Any:
        """The verifiers' version, and whether those that need a sentence splitter run."""
        version = importlib.metadata.version("if-verifiable")
        return [version, _is_checkable(*_NEEDS_SPLITTER)]

    def score(self, answer: str, record: Mapping[str, Any]) -> Scores:
        names, settings = _read_instructions(record)
        prompt = str(record.get("prompt", ""))
        pairs = zip(names, settings, strict=True)
        checks = [(n, each) for n, each in pairs if _is_checkable(n, json.dumps(each))]
        unscored = len(names) - len(checks)
        results = [_follows(answer, prompt, *check) for check in checks]
        values, weights = {}, {}
        for number, mode in enumerate(("strict", "loose")):
            followed = [result[number] for result in results]
            if followed:
                values[f"{self.label}/instruction_{mode}"] = sum(followed) / len(followed)
                weights[f"{self.label}/instruction_{mode}"] = len(followed)
            if not unscored:
                values[f"{self.label}/prompt_{mode}"] = float(all(followed))
        counts = {
            "instructions that cannot be checked here": unscored,
            "prompts with such an instruction": int(unscored > 0),
        }
        return Scores(values, weights=weights, unscored={k: n for k, n in counts.items() if n})


def _read_instructions(record: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of a record's instructions, and the settings of each.

    Raises:
        ValueError: there are none, one is not known, or it lacks a setting.
    """
    names: Any = record.get("instruction_id_list")
    settings: Any = record.get("kwargs")
    if isinstance(settings, str):
        settings = unique_json.parse(settings)
    if not _is_list(names, str) or not _is_list(settings, Mapping) or len(names) != len(settings):
        raise ValueError(
            "it needs `instruction_id_list`, a list of names, and `kwargs`, a list of as many "
            f"mappings, not {names!r:.60} and {settings!r:.60}"
        )
    # tables have every setting in each row, null where it is of no use
    cleaned = [{k: v for k, v in each.items() if v is not None} for each in settings]
    for name, each in zip(names, cleaned, strict=True):
        _, registry = _verifiers()
        if name not in registry:
            raise ValueError(f"there is no instruction {name!r}{suggestion(name, registry)}")
        verifier = registry[name](name)
        try:
            verifier.build_description(**each)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{name}: settings {each!r:.100} do not fit: {error}") from None
        if lacking := set(verifier.get_instruction_args_keys()) - set(each):
            # the verifier would draw them at random
            raise ValueError(f"{name}: its kwargs lack {', '.join(sorted(lacking))}")
    return names, cleaned


def _is_list(value: Any, kind: type) -> bool:
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
    return is_sequence and bool(value) and all(isinstance(item, kind) for item in value)


def _follows(answer: str, prompt: str, name: str, settings: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether an answer follows an instruction, strictly and loosely."""
    evaluate, registry = _verifiers()
    results, _ = evaluate(answer, [name], [settings], prompt, registry)
    # of an answer of white space there are none
    return (results[0].strict_pass, results[0].loose_pass) if results else (False, False)


@functools.lru_cache(maxsize=1024)
def _is_checkable(name: str, settings: str) -> bool:
    """Whether the verifier of an instruction, with settings as JSON, runs here."""
    verifier = _verifiers()[1][name](name)
    verifier.build_description(**json.loads(settings))
    try:
        verifier.check_following(_PROBE)
    except LookupError:  # nltk's, for data that it would download
        return False
    return True


@functools.cache
def _verifiers() -> tuple[Callable[..., Any], Mapping[str, Any]]:
    """What checks an answer against instructions, and the verifier of each by name.

    Raises:
        ValueError: the package is not there.
    """
    try:
        import langdetect
        from if_verifiable.common import evaluate_instructions
        from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT
    except ImportError as error:
        raise ValueError(
            f"the scorer `ifeval` needs the package if-verifiable ({error}): run tools/setup "
            "evaluate, after which graft evaluate finds it by itself; other commands run as "
            ".venv/evaluate/bin/python -m research.cli"
        ) from None
    langdetect.DetectorFactory.seed = 0  # it draws, and would answer otherwise another time
    return evaluate_instructions, INSTRUCTION_DICT
