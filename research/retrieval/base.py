"""What retrieves passages for a question: the settings that all kinds share, and their protocol."""

from __future__ import annotations

import contextlib
import dataclasses
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from research.config.schema import Positive, Share, to_dict
from research.config.suggestions import suggestion
from research.data.sources import AnySourceConfig
from research.data.sources.files import cache_folder
from research.retrieval.likelihood import Likelihood
from research.retrieval.passages import Chunks, Passages

# What the templates may write.
_OF_PROMPT = ("passages", "prompt")
_OF_PASSAGE = ("number", "id", "origin", "text", "completion")


class Searcher(Protocol):
    """An index that is open, with what reads questions."""

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """[Q,N] float32 of every passage for each of a few queries, the higher the better; -inf
        where it has nothing to do with it."""
        ...

    def similarity(self, rows: np.ndarray) -> np.ndarray:
        """[n,n] float32 how alike passages are, 1 for the same."""
        ...


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """What is retrieved for each question and put into its prompt.

    Each kind is a frozen dataclass in a file of its own, with `kind: Literal[...]` and `open`.
    """

    # what is searched: the training split of documents (`text`), which are cut into passages, or of
    # labelled examples, which stay whole
    source: AnySourceConfig
    _: dataclasses.KW_ONLY
    # most passages, and most tokens of them together, in a prompt
    passages: Positive = 4
    max_tokens: Positive = 512
    chunks: Chunks = Chunks()
    # how the prompt is written of `{passages}` and the question, `{prompt}`
    template: str = "{passages}\n\n{prompt}"
    # how a passage is written: `{number}`, `{id}`, `{origin}` (file and line), `{text}`, and of an
    # example `{completion}`; None: its number, id and text
    passage_template: str | None = None
    # between passages
    separator: str = "\n\n"
    # field of a question's record that is searched for; None: the question
    query: str | None = None
    # field of a question's record with the id of the right document, or a list of them
    relevant: str | None = None
    # field of the source's records with their id; None: `id`, where they have it
    id_field: str | None = None
    # recall is measured among so many of the best, where `relevant` is given
    measure_at: tuple[Positive, ...] = (1, 4, 10)
    # orders the best again by the likelihood of the question after each
    rerank: Likelihood | None = None
    # share of what counts that is unlike the others, not like the question (maximal marginal
    # relevance); 0 takes the nearest
    diversity: Share = 0.0
    # how many of the best are looked at to rerank, or for those that differ
    candidates: Positive = 32
    # what to do about passages that hold a question with its answer: refuse them, leave them out,
    # or read them, as is meant
    contamination: Literal["refuse", "leave_out", "allow"] = "refuse"
    # passages and questions with their answers are the same from this similarity on (Jaccard, of
    # runs of five words)
    near_duplicate: Share = 0.8

    def __post_init__(self) -> None:
        if not self.measure_at:
            raise ValueError(
                "measure_at is empty: it says among how many recall is, such as (1, 4)"
            )
        _check_template(self.template, "template", _OF_PROMPT, _OF_PROMPT)
        if self.passage_template is not None:
            _check_template(self.passage_template, "passage_template", _OF_PASSAGE, ("text",))

    @property
    def kind(self) -> str:
        """Its name in the registry and in configs."""
        raise NotImplementedError

    @property
    def reads(self) -> frozenset[str]:
        """Fields of a question's record that it reads."""
        return frozenset(name for name in (self.query, self.relevant) if name is not None)

    @property
    def model(self) -> str | None:
        """The run whose model embeds passages; None: none does."""
        return None

    @property
    def depth(self) -> int:
        """How many of the best passages are found."""
        narrows = self.rerank is not None or self.diversity > 0
        measured = self.measure_at if self.relevant is not None else ()
        return max(self.passages, *measured, self.candidates if narrows else 0)

    @property
    def settings(self) -> Any:
        """All of it, as JSON."""
        return to_dict(self)

    def open(self, passages: Passages, cache: Path) -> contextlib.AbstractContextManager[Searcher]:
        """Context with the index of the passages, which is made if the cache does not have it.

        Raises:
          ValueError: nothing can be indexed.
          FileNotFoundError: there is no such model.
        """
        raise NotImplementedError


def default_cache() -> Path:
    """Folder of indexes: `$GRAFT_CACHE/retrieval`, or ~/.cache/graft/retrieval."""
    return cache_folder("retrieval")


def field_names(template: str) -> Iterator[str]:
    """Names of the fields in a format string."""
    for _, name, _, _ in string.Formatter().parse(template):
        if name is not None:
            yield name


def _check_template(
    template: str, setting: str, known: Sequence[str], needed: Sequence[str]
) -> None:
    try:
        names = list(field_names(template))
    except ValueError as error:
        raise ValueError(
            f"{setting}: no format string ({error}); a brace is written twice"
        ) from None
    for name in names:
        if name not in known:
            raise ValueError(f"{setting}: it has no {{{name}}}{suggestion(name, known)}")
    for name in needed:
        if names.count(name) != 1:
            raise ValueError(f"{setting} must have {{{name}}} once, not {names.count(name)} times")
