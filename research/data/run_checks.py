"""What can be wrong with the data of a run as a whole: how prompts are written, what is held out.

`research.data.checks` has what can be wrong with each source's examples.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from research.config.schema import Share
from research.data import overlap
from research.data.checks import refuse
from research.data.config import DataConfig
from research.data.pipeline import Pipeline
from research.data.sources import SourceConfig
from research.objectives.base import Examples, Objective, name_rows
from research.text.tokenizer import Tokenizer

# Pairs of equal rows that an error names.
_MAX_EXAMPLES = 5


@dataclasses.dataclass(frozen=True)
class CheckConfig:
    """What a run goes on with knowingly. Nothing of it changes what is learnt."""

    # Splits of every source that must share no row with what is trained on, beside
    # `evaluate_split`, such as ("test",).
    splits: tuple[str, ...] = ()
    # Share of the rows of such a split, and of the questions of `evaluation`, that may be in the
    # training split of any source; 1 looks for none, and so reads no source for it.
    overlap: Share = 0.0
    # Share of a source's examples whose completion may be empty.
    empty_answers: Share = 0.0
    # Whether prompts may be written unlike the chat template that came with the model.
    other_template: bool = False


def check_run(
    data: Pipeline,
    config: CheckConfig,
    split: str | None,
    cache: str | os.PathLike[str],
    sources: Sequence[str] = (),
) -> None:
    """Whether a run may begin; its examples and its first batch have been checked before.

    Args:
      data: the run's.
      config: what is tolerated.
      split: the one that the run is measured on.
      cache: folder for tokenized sources, which keeps the hashes of rows too.
      sources: names of those that have held-out splits; none: all.

    Raises:
        ValueError: completions are empty, prompts are written unlike the model's chat template,
          or rows of a held-out split are trained on; names the rows.
    """
    for name, rows in data.rows.items():
        check_answers(rows.examples, data.config.objective_of(name), config.empty_answers)
    check_labels([rows.examples for rows in data.rows.values()])
    if not config.other_template:
        for objective in data.config.all_objectives:
            check_template(objective, data.tokenizer)
    splits = held_out(split, config.splits)
    check_overlap(data.config, data.tokenizer, splits, config.overlap, cache, sources)


def held_out(split: str | None, others: Sequence[str]) -> list[str]:
    """The splits that nothing may be trained on, each once."""
    return list(dict.fromkeys([*([split] if split else []), *others]))


def check_answers(examples: Examples, objective: Objective, max_share: float) -> None:
    """Refuses more empty completions than the share that is allowed."""
    if not objective.has_completions:
        return
    nonempty = examples.lengths > 0
    empty = np.flatnonzero(nonempty & (examples.bytes == 0))
    if len(empty) > max_share * nonempty.sum():
        rows = name_rows(np.asarray(examples.row_of(empty)))
        refuse(
            f"Source {examples.name!r}: the completion is empty in {len(empty):,} of "
            f"{nonempty.sum():,} examples ({rows}), which teaches the model to say nothing. "
            "Mend or remove these rows; checks.empty_answers allows a share of them, "
            f"now {max_share:.2%}."
        )


def check_labels(sources: Sequence[Examples]) -> None:
    """Refuses labels that are all alike, over all sources that are trained on."""
    labels = [examples.labels for examples in sources if examples.labels is not None]
    if labels and len(np.unique(np.concatenate(labels))) < 2:
        count = sum(map(len, labels))
        refuse(
            f"All {count:,} examples have the label {sources[0].label(0)!r}: there is nothing to "
            "tell apart. Name another field as the label, or add examples of other ones."
        )


def check_template(objective: Objective, tokenizer: Tokenizer) -> None:
    """Refuses a template that writes prompts unlike the one that came with the model."""
    try:
        objective.check_template(tokenizer)
    except ValueError as error:
        refuse(str(error))


def check_overlap(
    config: DataConfig,
    tokenizer: Tokenizer,
    splits: Sequence[str],
    max_share: float,
    cache: str | os.PathLike[str],
    heldout_sources: Sequence[str] = (),
) -> None:
    """Refuses held-out splits of which more than the share that is allowed is trained on.

    Equal rows only, of any two sources (`research.data.overlap` says what is equal and what it
    costs); graft inspect finds what is nearly equal, too.
    """
    if not splits or max_share == 1:
        return

    def hash_rows(source: SourceConfig, split: str) -> np.ndarray:
        objective = config.objective_of(source.name)
        return overlap.hash_rows(source, split, objective, tokenizer, cache)

    train_hashes = [hash_rows(source, source.split) for source in config.sources]
    names = [f"{source.name}:{source.split}" for source in config.sources]
    for split in splits:
        for source in config.sources:
            if heldout_sources and source.name not in heldout_sources:
                continue
            if split == source.split:
                refuse(
                    f"Source {source.name!r}: its split {split!r} is held out and trained on; "
                    "checks.overlap=1 goes on with that."
                )
                continue
            hashes = hash_rows(source, split)
            pairs = overlap.find_shared(hashes, train_hashes)
            if len(pairs) > max_share * len(hashes):
                refuse(
                    f"Source {source.name!r}: {len(pairs):,} of {len(hashes):,} rows "
                    f"({len(pairs) / len(hashes):.2%}) of its split {split!r} are trained on too: "
                    f"{name_pairs(pairs, names)}. Remove them from one of the two; "
                    f"checks.overlap allows a share of them, now {max_share:.2%}."
                )


def name_pairs(pairs: overlap.Pairs, names: Sequence[str]) -> str:
    """Equal rows as errors name them: `row 3 is row 8 of notes:train, and 2 more`."""
    first = [
        f"row {row} is row {other} of {names[place]}"
        for row, place, other in zip(pairs.rows, pairs.places, pairs.others, strict=True)
    ][:_MAX_EXAMPLES]
    more = f", and {len(pairs) - _MAX_EXAMPLES:,} more" if len(pairs) > _MAX_EXAMPLES else ""
    return ", ".join(first) + more
