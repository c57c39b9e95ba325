"""Config of `graft prepare`: sources, stages and their thresholds."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Annotated

import pydantic

from research.config.schema import Count, Positive, Share
from research.data.sources import AnySourceConfig

# Above 0: a threshold of nothing would make everything a duplicate of everything.
Threshold = Annotated[float, pydantic.Field(gt=0, le=1)]


@dataclasses.dataclass(frozen=True)
class Quality:
    """Thresholds of the rules of Gopher (Rae et al. 2021, arXiv:2112.11446, appendix A.1).

    Words are what white space parts. A document that breaks a rule goes. The rules are meant for
    English prose: name in `exempt` what is none.
    """

    # Kinds that the rules are not applied to, such as code.
    exempt: tuple[str, ...] = ()
    min_words: Count = 50
    max_words: Positive = 100_000
    # Characters of a word, on average.
    shortest_mean_word: Count = 3
    longest_mean_word: Positive = 10
    # Hash signs a word, and ellipses a word.
    max_symbols: Share = 0.1
    # Share of the lines that start with a bullet, and that end with an ellipsis.
    max_bullet_lines: Share = 0.9
    max_ellipsis_lines: Share = 0.3
    # Share of the words that hold a letter.
    min_letter_words: Share = 0.8
    # How many different ones of `stop_words` there must be.
    min_stop_words: Count = 2
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    # Share of the lines, and of the paragraphs, that stood before; in number and in characters.
    max_repeated_lines: Share = 0.3
    max_repeated_paragraphs: Share = 0.3
    max_repeated_line_characters: Share = 0.2
    max_repeated_paragraph_characters: Share = 0.2
    # Words in an n-gram -> share of the characters that the most common one may cover.
    max_common_ngram: tuple[tuple[Positive, Share], ...] = ((2, 0.2), (3, 0.18), (4, 0.16))
    # Words in an n-gram -> share of the characters in n-grams that stood before.
    max_repeated_ngrams: tuple[tuple[Positive, Share], ...] = (
        (5, 0.15),
        (6, 0.14),
        (7, 0.13),
        (8, 0.12),
        (9, 0.11),
        (10, 0.1),
    )


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """Examples that must not be among the documents."""

    source: AnySourceConfig
    # None: the source's own split.
    splits: tuple[str, ...] | None = None
    # Fields that are looked for, each by itself. None: those of the records' format (the text; the
    # prompt and the completion; every message).
    fields: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Contamination:
    """Removes documents that share a word n-gram with an evaluation example."""

    evaluations: tuple[EvaluationSet, ...]
    # Words of an n-gram, lower-case, without punctuation; 13 as in GPT-3 (arXiv:2005.14165,
    # appendix C).
    words: Positive = 13
    # A shorter text of an example is looked for as a whole, but not one of fewer words than this:
    # chance would find it.
    min_words: Positive = 8

    def __post_init__(self) -> None:
        if not self.evaluations:
            raise ValueError("evaluations: name at least one source of examples, or leave out all.")
        _check_once("evaluation", [each.source.name for each in self.evaluations])
        if self.min_words > self.words:
            raise ValueError(
                f"min_words is {self.min_words}, above the {self.words} words of an n-gram."
            )


@dataclasses.dataclass(frozen=True)
class NearDuplicates:
    """Removes documents whose sets of word n-grams are alike, by MinHash (Broder 1997)."""

    # Jaccard similarity from which on a later document goes.
    threshold: Threshold = 0.8
    # Words of an n-gram, lower-case, without punctuation.
    words: Positive = 5
    # Hash functions: the estimate of a similarity s has the standard deviation
    # sqrt(s (1 - s) / permutations), 0.035 at 0.8.
    permutations: Annotated[int, pydantic.Field(ge=16)] = 128
    # Decides the hash functions.
    seed: Count = 1


@dataclasses.dataclass(frozen=True)
class PreparationConfig:
    """Sources, stages and tokenizer. A stage that is None is left out."""

    # Records with a field `text`; a source's name is the kind of its documents.
    sources: tuple[AnySourceConfig, ...]
    # A tokenizer's JSON, or the folder of a run.
    tokenizer: str
    # Every source has these. Of duplicates the first stays, in the order of splits, then sources,
    # then rows: put what is held out first, and nothing like it is trained on.
    splits: tuple[str, ...] = ("train",)
    quality: Quality | None = None
    contamination: Contamination | None = None
    # Whether documents of the same text go (as `research.text.normalize.normalize` has it).
    exact_duplicates: bool = True
    near_duplicates: NearDuplicates | None = NearDuplicates()
    # Documents that are one unit of work, and at most one file of the output. It does not change
    # which documents stay, only how they are cut into files.
    rows: Positive = 8192

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("At least one source is needed.")
        if not self.splits:
            raise ValueError("At least one split is needed.")
        kinds = [source.name for source in self.sources]
        _check_once("source", kinds)
        _check_once("split", self.splits)
        for split in self.splits:
            if not split.isidentifier() or split == "all":
                raise ValueError(
                    f"{split!r} cannot be the name of a split: letters, digits and underscores, "
                    'and not "all".'
                )
        if self.quality is not None:
            for name in self.quality.exempt:
                if name not in kinds:
                    raise ValueError(f"quality.exempt: no source is named {name!r}, only {kinds}.")


def _check_once(what: str, names: Sequence[str]) -> None:
    (name, count), *_ = collections.Counter(names).most_common(1)
    if count > 1:
        raise ValueError(f"The {what} {name!r} is listed twice.")
