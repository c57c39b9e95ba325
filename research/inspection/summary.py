"""What the examples of a run are like, source by source and split by split: lengths, labels, twins.

`summarise` gives plain numbers and texts, for a table, a page or a JSON file.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from research.data import overlap, token_cache
from research.data.examples import open_texts
from research.data.sources import Source
from research.inspection.rows import Opened
from research.text import near_duplicates
from research.text.normalize import normalise

if TYPE_CHECKING:
    from research.data.packing.planning import PackingPlan
    from research.objectives.base import Examples, Objective
    from research.text.tokenizer import Tokenizer

# More distinct completions than these are no labels.
_LABELS = 40
# Examples whose completions are counted, evenly spread.
_COUNTED = 100_000
# Rows of a source that are compared for being nearly equal, and characters of all sources: drawn
# by a fixed seed.
_COMPARED, _CHARACTERS = 8_000, 8_000_000
# Similarity from which two texts are nearly equal: of their sets of word 5-grams (Jaccard).
NEAR = 0.8
_NAMED = 5
_BINS = 24


def summarise(opened: Opened, near: bool = True) -> list[dict[str, Any]]:
    """A summary of every source in every split: the trained one first, then those held out.

    Args:
      opened: the data.
      near: whether rows are also compared for being nearly equal (seconds).
    """
    data, words = opened.pipeline, opened.tokenizer
    objective, cache = data.config.objective, token_cache.default_cache()
    sources = data.config.sources
    planned = data.statistics(opened.experiment.steps)
    names = [f"{source.name}:{source.split}" for source in sources]
    trained = [overlap.hash_rows(s, s.split, objective, words, cache) for s in sources]
    share = _CHARACTERS // len(sources)
    texts = [
        _texts(open_texts(s, s.split, words), objective, share) if near else None for s in sources
    ]
    found, prompts = [], list[Prompts]()
    for source, hashes, sample in zip(sources, trained, texts, strict=True):
        rows, numbers = data.rows[source.name], planned[source.name]
        answers, read = _answers(rows.examples, words)
        prompts.append(read)
        summary = _describe(rows.examples, rows.plan) | answers
        summary |= {key: numbers[key] for key in ("format", "bad_lines", "share", "epochs")}
        summary |= _repeated(hashes, sample)
        found.append({"source": source.name, "split": source.split, "trains": True, **summary})
    by_name = {source.name: source for source in sources}
    for (name, split), held in opened.heldout.items():
        labelled = any("labels" in one for one in found if one["source"] == name)
        answers, read = _answers(held.rows.examples, words, labelled)
        summary = _describe(held.rows.examples, held.rows.plan) | answers
        summary |= _read_alike(read, prompts, names)
        hashes = overlap.hash_rows(by_name[name], split, objective, words, cache)
        sample = _texts(open_texts(by_name[name], split, words), objective, share) if near else None
        summary |= _repeated(hashes, sample) | _shared(hashes, trained, names, sample, texts)
        found.append({"source": name, "split": split, "trains": False, **summary})
    return found


def _describe(examples: Examples, plan: PackingPlan) -> dict[str, Any]:
    filled = examples.lengths > 0
    lengths = examples.lengths[filled]
    return {
        "rows": examples.documents,
        "examples": len(lengths),
        "empty": int((~filled).sum()),
        "note": examples.note,
        "tokens": int(lengths.sum()),
        "lengths": _quantiles(lengths),
        "histogram": _histogram(lengths),
        "truncated": int(examples.truncated.sum()),
        "truncated_share": float(examples.truncated[filled].mean()) if filled.any() else 0.0,
        "fill": plan.fill,
        "packed_rows": len(plan),
        "trained": float(examples.trained.sum() / max(1, lengths.sum())),
        "trained_lengths": _quantiles(examples.trained[filled]),
    }


def _quantiles(lengths: np.ndarray) -> dict[str, float]:
    if not len(lengths):
        return {}
    names = {"smallest": 0, "5%": 5, "median": 50, "95%": 95, "largest": 100}
    found = np.percentile(lengths, list(names.values())).tolist()
    return dict(zip(names, found, strict=True)) | {"mean": float(lengths.mean())}


def _histogram(lengths: np.ndarray) -> dict[str, list[float]]:
    """Counts between edges; the edges grow by a factor where lengths spread over much."""
    if not len(lengths):
        return {"edges": [], "counts": []}
    low, high = int(lengths.min()), int(lengths.max()) + 1
    bins = min(_BINS, high - low)
    spread = np.geomspace if high > 20 * np.median(lengths) else np.linspace
    edges = np.unique(np.rint(spread(low, high, bins + 1)).astype(np.int64))
    return {"edges": edges.tolist(), "counts": np.histogram(lengths, edges)[0].tolist()}


# Digest of what the model reads before its first answer -> the example that was first read so,
# and whether it was cut.
Prompts = dict[bytes, tuple[int, bool]]


def _answers(
    examples: Examples, words: Tokenizer, labelled: bool = False
) -> tuple[dict[str, Any], Prompts]:
    """Distinct completions, by themselves where they are few, and how prompts repeat.

    `labelled`: they are known to be labels, so a few examples may each have another.
    Prompts are compared as the model reads them: two that were cut may have become one.
    """
    filled = np.flatnonzero(examples.lengths)
    prompts: Prompts = {}
    if examples.splittable or examples.rows is not None or not len(filled):
        return {}, prompts
    counts: collections.Counter[bytes] = collections.Counter()
    answer_of: dict[int, bytes] = {}
    against, cut = [], 0
    looked = filled[:: -(-len(filled) // _COUNTED)]
    for index in looked.tolist():
        piece = examples.piece(index, 0, int(examples.lengths[index]))
        said = piece.weights > 0
        answer = np.asarray(piece.targets[said], np.int32).tobytes()
        counts[answer] += 1
        prompt = np.asarray(piece.tokens[: 1 + int(np.argmax(said))], np.int32).tobytes()
        digest = hashlib.blake2b(prompt, digest_size=16).digest()
        shortened = bool(examples.truncated[index])
        first, first_shortened = prompts.setdefault(digest, (index, shortened))
        if answer_of.setdefault(first, answer) != answer:
            against.append([index, first])
            cut += shortened or first_shortened
    found: dict[str, Any] = {
        "completions": len(counts),
        "contradictions": len(against),
        "contradictions_cut": cut,
        "contradicting_rows": against[:_NAMED],
    }
    if len(counts) <= (_LABELS if labelled else min(_LABELS, len(looked) // 2)):
        found["labels"] = [
            {
                "text": words.decode(ids := np.frombuffer(key, np.int32)),
                "ids": ids.tolist(),
                "count": count,
                "share": count / len(looked),
            }
            for key, count in counts.most_common()
        ]
    return found, prompts


def _read_alike(prompts: Prompts, trained: Sequence[Prompts], names: Sequence[str]) -> dict:
    """Held-out prompts that the model reads exactly as one that it is trained on."""
    if not prompts:
        return {}
    alike, cut = [], 0
    for prompt, (row, shortened) in prompts.items():
        for name, other in zip(names, trained, strict=True):
            if prompt in other:
                at, other_shortened = other[prompt]
                alike.append([row, name, at])
                cut += shortened or other_shortened
    return {
        "read_alike": len(alike),
        "read_alike_cut": cut,
        "read_alike_rows": alike[:_NAMED],
    }


def _texts(source: Source, objective: Objective, most: int) -> tuple[np.ndarray, list[str]]:
    """Rows that are compared, in order, and their texts of about `most` characters in all.

    Of equal rows one is compared.
    """
    found, seen, size = {}, set(), 0
    for row in np.random.default_rng(0).permutation(len(source))[:_COMPARED].tolist():
        text = "\n".join(objective.texts(source[row], f"{source.name}, row {row}"))
        if (normal := normalise(text)) and normal not in seen:
            found[row] = text
            seen.add(normal)
            size += len(text)
        if size >= most:
            break
    rows = sorted(found)
    return np.asarray(rows, np.int64), [found[row] for row in rows]


def _repeated(hashes: np.ndarray, sample: tuple[np.ndarray, list[str]] | None) -> dict[str, Any]:
    """Rows that are equal to an earlier one; and those that are not, but nearly."""
    again = overlap.find_repeated(hashes)
    pairs = zip(again.rows[:_NAMED].tolist(), again.others[:_NAMED].tolist(), strict=True)
    found: dict[str, Any] = {
        "repeated": len(again),
        "repeated_share": len(again) / max(1, len(hashes)),
        "repeated_rows": [list(pair) for pair in pairs],
    }
    if sample is not None and sample[1]:
        cluster = near_duplicates.clusters(sample[1], NEAR)
        _, first = np.unique(cluster, return_index=True)
        found["near_compared"] = len(cluster)
        found["near_repeated"] = len(cluster) - len(first)
    return found


def _shared(
    hashes: np.ndarray,
    trained: Sequence[np.ndarray],
    names: Sequence[str],
    sample: tuple[np.ndarray, list[str]] | None,
    others: Sequence[tuple[np.ndarray, list[str]] | None],
) -> dict[str, Any]:
    """Rows that are equal to one that is trained on; and those that are not, but nearly."""
    pairs = overlap.find_shared(hashes, trained)
    found: dict[str, Any] = {
        "shared": len(pairs),
        "shared_share": len(pairs) / max(1, len(hashes)),
        "shared_rows": [
            [int(row), names[place], int(other)]
            for row, place, other in zip(pairs.rows, pairs.places, pairs.others, strict=True)
        ][:_NAMED],
    }
    read = [(name, *other) for name, other in zip(names, others, strict=True) if other is not None]
    if sample is None or not sample[1] or not read:
        return found
    alone = np.flatnonzero(~np.isin(sample[0], pairs.rows))
    held = [sample[1][i] for i in alone]
    references = [text for _, _, texts in read for text in texts]
    whose = [(name, int(row)) for name, rows, _ in read for row in rows]
    best, index = near_duplicates.nearest_similarity(held, references)
    order = np.argsort(-best, kind="stable")[:_NAMED].tolist()
    found["near_shared"] = int((best >= NEAR).sum())
    found["nearest"] = [
        [int(sample[0][alone[i]]), *whose[index[i]], float(best[i])] for i in order if index[i] >= 0
    ]
    return found
