"""From a source in a config to the checked examples of its objective."""

import dataclasses
import os
from typing import TYPE_CHECKING

from research import config as config_lib
from research.data import checks
from research.data.sources import SourceConfig, open_source
from research.data.sources.prepared import Prepared
from research.data.tokenizer import Tokenizer
from research.data.tokens import encode, read_prepared, tokenise
from research.objectives import OBJECTIVES
from research.objectives.base import Encodes, Examples, Objective

if TYPE_CHECKING:
    from research.data.pipeline import DataConfig


@dataclasses.dataclass(frozen=True)
class Origin:
    """What is said of a source beside its examples."""

    # Identifies the content.
    fingerprint: str
    # One of `research.data.formats.FORMATS`.
    format: str
    # Records that could not be read and were left out.
    bad_lines: int


def make_objective(config: "DataConfig") -> Objective:
    """The configured objective. Raises ValueError for unknown names and settings."""
    if config.objective not in OBJECTIVES:
        raise ValueError(
            f"There is no objective {config.objective!r}. Known: {sorted(OBJECTIVES)}."
        )
    cls = OBJECTIVES[config.objective]
    return config_lib.build(cls, dict(config.objective_settings), where="objective_settings")


def read_examples(
    config: "DataConfig",
    source: SourceConfig,
    split: str,
    tokenizer: Tokenizer,
    cache: str | os.PathLike[str],
) -> tuple[Examples, Origin]:
    """Opens, tokenises (once, if it is no prepared source) and checks one split of one source."""
    objective = make_objective(config)
    opened = open_source(source, split)
    checks.check_not_empty(opened.name, len(opened))
    if isinstance(opened, Prepared):
        table = read_prepared(opened, tokenizer, objective.fields)
    elif isinstance(objective, Encodes):
        table = encode(opened, objective.encoder(tokenizer, config.sequence_length), cache)
    else:
        table = tokenise(opened, tokenizer, objective.fields, cache)
    examples = objective.prepare(table, tokenizer, config.sequence_length)
    checks.check_examples(examples, tokenizer, config.sequence_length)
    return examples, Origin(opened.fingerprint, opened.format, opened.bad_lines)
