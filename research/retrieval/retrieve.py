"""From questions to the passages of each: the index and what is wrong with it, the best, the
budget."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from research.checkpoints import runs
from research.config.suggestions import suggestion
from research.data.sources import open_source
from research.retrieval.base import RetrievalConfig, default_cache
from research.retrieval.contamination import find_leaks
from research.retrieval.measures import measure
from research.retrieval.models import open_reader
from research.retrieval.passages import Passages, read_passages
from research.retrieval.prompts import PromptPassages, count_tokens, fit, write_passage
from research.retrieval.ranking import Ranking, rank
from research.runtime import storage
from research.text import tokenizer as tokenizers
from research.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

# Leaks that an error names.
_MAX_NAMES = 5


@dataclasses.dataclass(frozen=True)
class Query:
    """What passages are searched for."""

    text: str
    # as the test's row asks it, and its right answers, where they are known: for contamination
    question: str = ""
    answers: tuple[str, ...] = ()
    # of its split, for errors
    row: int = 0
    # the right documents; empty: they are not known
    right: frozenset[str] = frozenset()


def retrieve(
    config: RetrievalConfig,
    queries: Sequence[Query],
    tokenizer: Tokenizer,
    cache: Path | None = None,
) -> list[PromptPassages]:
    """The passages of each query, as many as the budget holds.

    Args:
      config: what is searched, and how.
      tokenizer: of the model that is asked: the budget counts its tokens.
      cache: folder of indexes; None: the default one.

    Raises:
      ValueError: an empty index, passages that give a test away, a budget that holds none, right
        documents that there are not, or nothing found for any query.
    """
    cache = cache or default_cache()
    passages = open_passages(config, tokenizer, cache)
    _check_budget(config, passages, tokenizer)
    documents = passages.documents()
    if any(query.right for query in queries):
        passages.check_documents()
    _check_right(passages.name, documents, queries)
    left_out = _check_leaks(config, passages, queries)
    texts = [query.text for query in queries]
    with config.open(passages, cache) as searcher:
        rankings = rank(config, searcher, passages, texts, left_out)
    results = [
        _in_prompt(config, passages, query, ranking, documents, tokenizer)
        for query, ranking in zip(queries, rankings, strict=True)
    ]
    if not any(result.texts for result in results):
        _refuse_nothing(config, passages, rankings, tokenizer)
    return results


def open_passages(config: RetrievalConfig, tokenizer: Tokenizer | None, cache: Path) -> Passages:
    """What is searched, cut by the tokens that the config states.

    Args:
      tokenizer: of the model that is asked, if one is.

    Raises:
      ValueError: nothing to retrieve, or nothing says whose tokens passages are cut by.
    """
    stated = _stated_tokenizer(config)
    if stated is None and tokenizer is None:
        raise ValueError(
            "nothing says whose tokens passages are cut by: set retrieval.chunks.tokenizer to a "
            "tokenizer's file or a run's folder, or name a run that is asked with --run"
        )
    chosen_tokenizer = stated or tokenizer
    assert chosen_tokenizer is not None
    return read_passages(config.source, config.chunks, config.id_field, chosen_tokenizer, cache)


def content_key(config: RetrievalConfig) -> dict[str, object]:
    """What is retrieved depends on beside the settings: the content of the files that they name."""
    stated = _stated_tokenizer(config)
    models = [config.model, config.rerank.model if config.rerank else None]
    return {
        "source": open_source(config.source).fingerprint,
        "tokenizer": None if stated is None else stated.fingerprint(),
        "models": [None if path is None else open_reader(path).fingerprint for path in models],
    }


def _stated_tokenizer(config: RetrievalConfig) -> Tokenizer | None:
    path = config.chunks.tokenizer or config.model
    if path is None:
        return None
    return runs.open_run(path).tokenizer if storage.is_folder(path) else tokenizers.load(path)


def _in_prompt(
    config: RetrievalConfig,
    passages: Passages,
    query: Query,
    ranking: Ranking,
    documents: Sequence[str],
    tokenizer: Tokenizer,
) -> PromptPassages:
    chosen_passages, texts = fit(config, passages, ranking, tokenizer)
    order = [documents[row] for row in ranking.rows]
    return PromptPassages(
        ids=tuple(passage.id for passage in chosen_passages),
        texts=tuple(texts),
        documents=tuple(passage.document for passage in chosen_passages),
        scores=measure(order, query.right, config.measure_at) if query.right else {},
        right=query.right,
        config=config,
    )


def _check_budget(config: RetrievalConfig, passages: Passages, tokenizer: Tokenizer) -> None:
    """Raises ValueError if every passage is more than the budget."""
    shortest = passages[int(np.argmin(passages.lengths()))].content
    if len(tokenizer.encode(shortest)) > config.max_tokens:  # it may have more than others have
        tokens = min(map(len, tokenizer.encode_batch(passages.contents())))
        if tokens > config.max_tokens:
            raise _too_small(config, tokens)


def _refuse_nothing(
    config: RetrievalConfig,
    passages: Passages,
    rankings: Sequence[Ranking],
    tokenizer: Tokenizer,
) -> None:
    """Raises ValueError: why no question has a passage."""
    rows = sorted({int(row) for ranking in rankings for row in ranking.rows})
    if not rows:
        raise ValueError(
            f"{passages.name}: none of {len(rankings)} questions has a word in common with one of "
            f"{len(passages)} passages: is it the right source?"
        )
    raise _too_small(
        config,
        min(
            count_tokens(config, [write_passage(config, passages, passages[row], 1)], tokenizer)
            for row in rows
        ),
    )


def _too_small(config: RetrievalConfig, tokens: int) -> ValueError:
    return ValueError(
        f"retrieval.max_tokens={config.max_tokens} holds no passage: the smallest has {tokens} "
        "tokens. Raise it, or cut smaller ones with retrieval.chunks.tokens"
    )


def _check_right(name: str, documents: Sequence[str], queries: Sequence[Query]) -> None:
    """Raises ValueError if a right document is not among those that are searched."""
    known = set(documents)
    for query in queries:
        if missing := sorted(query.right - known):
            raise ValueError(
                f"row {query.row}: its right document {missing[0]!r} is none of the "
                f"{len(known)} of {name}{suggestion(missing[0], known)}; retrieval.relevant must "
                "give the id that retrieval.id_field gives there"
            )


def _check_leaks(
    config: RetrievalConfig, passages: Passages, queries: Sequence[Query]
) -> np.ndarray:
    """[N] bool of passages to leave out, which give a test away.

    Raises:
      ValueError: there are some, and the config does not say what to do about them.
    """
    left_out = np.zeros(len(passages), bool)
    if config.contamination == "allow":
        return left_out
    leaks = find_leaks(
        passages.contents(),
        [query.question for query in queries],
        [query.answers for query in queries],
        config.near_duplicate,
    )
    if not leaks:
        return left_out
    if config.contamination == "refuse":
        names = []
        for leak in leaks[:_MAX_NAMES]:
            passage = passages[leak.passage]
            names.append(
                f"{passage.id} ({passages.origin(passage)}) {leak.reason}: row "
                f"{queries[leak.question].row}"
            )
        more = f"\n  and {len(leaks) - _MAX_NAMES:,} more" if len(leaks) > _MAX_NAMES else ""
        raise ValueError(
            f"{passages.name}: {len(leaks)} of {len(passages)} passages give the test away:\n  "
            + "\n  ".join(names)
            + f'{more}\nLeave them out with retrieval.contamination="leave_out", or, if a model is '
            'meant to look the answer up, set "allow"'
        )
    left_out[[leak.passage for leak in leaks]] = True
    if left_out.all():
        raise ValueError(f"{passages.name}: all {len(passages)} passages give the test away")
    log.warning(
        "%s: %d of %d passages are left out, which give the test away",
        passages.name,
        len(leaks),
        len(passages),
    )
    return left_out
