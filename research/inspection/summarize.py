"""Computes the summaries of a run's examples, source by source and split by split."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from research.data import overlap, token_cache
from research.data.examples import open_texts
from research.data.sources import Source, SourceConfig
from research.inspection.rows import RunData
from research.inspection.summary import (
    NEAR,
    CompletionStatistics,
    ExampleStatistics,
    Histogram,
    Label,
    PlanStatistics,
    PromptOverlap,
    Repeats,
    SplitSummary,
    TrainingOverlap,
)
from research.text import near_duplicates
from research.text.normalize import normalize

if TYPE_CHECKING:
    from research.data.packing.planning import PackingPlan
    from research.objectives.base import Examples, Objective
    from research.text.tokenizer import Tokenizer

# More distinct completions than these are no labels.
_MAX_LABELS = 40
# Examples whose completions are counted, evenly spread.
_MAX_COUNTED = 100_000
# Rows of a source that are compared for being nearly equal, and characters of all sources: drawn
# by a fixed seed.
_MAX_COMPARED, _MAX_CHARACTERS = 8_000, 8_000_000
# Rows that are listed for each finding.
_MAX_LISTED = 5
_BINS = 24

# Digest of what the model reads before its first answer -> the row that was first read so, and
# whether it was cut.
Prompts = dict[bytes, tuple[int, bool]]


class _Sample(NamedTuple):
    """Rows that are compared for being nearly equal, in order, and their texts."""

    rows: np.ndarray
    texts: list[str]


class _ComparedSplit(NamedTuple):
    """Hashes, texts and prompts by which the rows of a split are compared."""

    name: str
    hashes: np.ndarray
    # None: rows are not compared for being nearly equal.
    sample: _Sample | None
    prompts: Prompts


def summarize(data: RunData, near: bool = True) -> list[SplitSummary]:
    """A summary of every source in every split: the trained one first, then those held out.

    Args:
      data: the run's data.
      near: whether rows are also compared for being nearly equal (seconds).
    """
    pipeline = data.pipeline
    sources = pipeline.config.sources
    comparison = _Comparison(data, near)
    plan_statistics = pipeline.statistics(data.experiment.steps)
    summaries: list[SplitSummary] = []
    training: list[_ComparedSplit] = []
    for source in sources:
        rows, numbers = pipeline.rows[source.name], plan_statistics[source.name]
        completions, prompts = _completions(rows.examples, data.tokenizer)
        split = comparison.read(source, source.split, prompts)
        training.append(split)
        summaries.append(
            SplitSummary(
                source=source.name,
                split=source.split,
                trains=True,
                examples=_examples(rows.examples, rows.plan),
                repeats=_repeats(split),
                completions=completions,
                plan=PlanStatistics(
                    numbers.format, numbers.bad_lines, numbers.share, numbers.epochs
                ),
            )
        )
    sources_by_name = {source.name: source for source in sources}
    for (name, split_name), heldout in data.heldout.items():
        has_labels = any(each.labels is not None for each in summaries if each.source == name)
        completions, prompts = _completions(heldout.rows.examples, data.tokenizer, has_labels)
        split = comparison.read(sources_by_name[name], split_name, prompts)
        summaries.append(
            SplitSummary(
                source=name,
                split=split_name,
                trains=False,
                examples=_examples(heldout.rows.examples, heldout.rows.plan),
                repeats=_repeats(split),
                completions=completions,
                prompt_overlap=_prompt_overlap(prompts, training),
                training_overlap=_training_overlap(split, training),
            )
        )
    return summaries


class _Comparison:
    """Reads the hashes and the texts by which rows are compared."""

    def __init__(self, data: RunData, near: bool):
        self._tokenizer, self._near = data.tokenizer, near
        self._config = data.pipeline.config
        self._cache = token_cache.default_cache()
        self._characters = _MAX_CHARACTERS // len(data.pipeline.config.sources)

    def read(self, source: SourceConfig, split: str, prompts: Prompts) -> _ComparedSplit:
        """The hashes and the sample of a split, beside its prompts."""
        objective = self._config.objective_of(source.name)
        hashes = overlap.hash_rows(source, split, objective, self._tokenizer, self._cache)
        sample = None
        if self._near:
            texts = open_texts(source, split, self._tokenizer)
            sample = _draw_sample(texts, objective, self._characters)
        return _ComparedSplit(f"{source.name}:{split}", hashes, sample, prompts)


def _examples(examples: Examples, plan: PackingPlan) -> ExampleStatistics:
    is_filled = examples.lengths > 0
    lengths = examples.lengths[is_filled]
    return ExampleStatistics(
        rows=examples.documents,
        examples=len(lengths),
        empty=int((~is_filled).sum()),
        note=examples.note,
        tokens=int(lengths.sum()),
        lengths=_quantiles(lengths),
        histogram=_histogram(lengths),
        truncated=int(examples.truncated.sum()),
        truncated_share=float(examples.truncated[is_filled].mean()) if is_filled.any() else 0.0,
        fill=plan.fill,
        packed_rows=len(plan),
        trained=float(examples.trained.sum() / max(1, lengths.sum())),
        trained_lengths=_quantiles(examples.trained[is_filled]),
    )


def _quantiles(lengths: np.ndarray) -> dict[str, float]:
    if not len(lengths):
        return {}
    percents = {"smallest": 0, "5%": 5, "median": 50, "95%": 95, "largest": 100}
    values = np.percentile(lengths, list(percents.values())).tolist()
    return dict(zip(percents, values, strict=True)) | {"mean": float(lengths.mean())}


def _histogram(lengths: np.ndarray) -> Histogram:
    """Counts between edges; the edges grow by a factor where lengths spread over much."""
    if not len(lengths):
        return Histogram([], [])
    low, high = int(lengths.min()), int(lengths.max()) + 1
    bins = min(_BINS, high - low)
    space = np.geomspace if high > 20 * np.median(lengths) else np.linspace
    edges = np.unique(np.rint(space(low, high, bins + 1)).astype(np.int64))
    return Histogram(edges.tolist(), np.histogram(lengths, edges)[0].tolist())


def _completions(
    examples: Examples, tokenizer: Tokenizer, has_labels: bool = False
) -> tuple[CompletionStatistics | None, Prompts]:
    """Distinct completions, by themselves where they are few, and how prompts repeat.

    Prompts are compared as the model reads them: two that were cut may have become one.

    Args:
      examples: of a split; without prompts there is nothing to say.
      tokenizer: spells the labels.
      has_labels: whether completions are known to be labels, so that each of a few examples may
        have another.
    """
    nonempty = np.flatnonzero(examples.lengths)
    prompts: Prompts = {}
    if not examples.are_rows or not len(nonempty):
        return None, prompts
    counts: collections.Counter[bytes] = collections.Counter()
    completion_of: dict[int, bytes] = {}
    contradicting_rows, contradictions_cut = [], 0
    sampled = nonempty[:: -(-len(nonempty) // _MAX_COUNTED)]
    for index in sampled.tolist():
        piece = examples.piece(index, 0, int(examples.lengths[index]))
        is_target = piece.weights > 0
        label = examples.label(index)
        completion = np.asarray(piece.targets[is_target], np.int32).tobytes()
        completion = completion if label is None else label.encode()
        counts[completion] += 1
        prompt = np.asarray(piece.tokens[: 1 + int(np.argmax(is_target))], np.int32).tobytes()
        digest = hashlib.blake2b(prompt, digest_size=16).digest()
        is_cut = bool(examples.truncated[index])
        first, first_is_cut = prompts.setdefault(digest, (index, is_cut))
        if completion_of.setdefault(first, completion) != completion:
            rows = (int(examples.row_of(index)), int(examples.row_of(first)))
            contradicting_rows.append(rows)
            contradictions_cut += is_cut or first_is_cut
    labels, has_head = None, examples.labels is not None
    if len(counts) <= (_MAX_LABELS if has_labels else min(_MAX_LABELS, len(sampled) // 2)):
        labels = [
            _label(completion, count, len(sampled), None if has_head else tokenizer)
            for completion, count in counts.most_common()
        ]
    statistics = CompletionStatistics(
        completions=len(counts),
        contradictions=len(contradicting_rows),
        contradictions_cut=contradictions_cut,
        contradicting_rows=contradicting_rows[:_MAX_LISTED],
        labels=labels,
    )
    rows_by_prompt = {
        digest: (int(examples.row_of(index)), is_cut) for digest, (index, is_cut) in prompts.items()
    }
    return statistics, rows_by_prompt


def _label(completion: bytes, count: int, total: int, tokenizer: Tokenizer | None) -> Label:
    if tokenizer is None:  # a label that a head says
        return Label(completion.decode(), [], count, count / total)
    ids = np.frombuffer(completion, np.int32)
    return Label(tokenizer.decode(ids), ids.tolist(), count, count / total)


def _prompt_overlap(prompts: Prompts, training: Sequence[_ComparedSplit]) -> PromptOverlap | None:
    """Held-out prompts that the model reads exactly as one that it is trained on."""
    if not prompts:
        return None
    rows, cut_count = [], 0
    for prompt, (row, is_cut) in prompts.items():
        for split in training:
            if prompt in split.prompts:
                other, other_is_cut = split.prompts[prompt]
                rows.append((row, split.name, other))
                cut_count += is_cut or other_is_cut
    return PromptOverlap(len(rows), cut_count, rows[:_MAX_LISTED])


def _draw_sample(source: Source, objective: Objective, max_characters: int) -> _Sample:
    """Rows with texts of about `max_characters` in all; of equal rows only one."""
    text_of: dict[int, str] = {}
    normal_texts: set[str] = set()
    size = 0
    for row in np.random.default_rng(0).permutation(len(source))[:_MAX_COMPARED].tolist():
        text = "\n".join(objective.texts(source[row], f"{source.name}, row {row}"))
        if (normal := normalize(text)) and normal not in normal_texts:
            text_of[row] = text
            normal_texts.add(normal)
            size += len(text)
        if size >= max_characters:
            break
    rows = sorted(text_of)
    return _Sample(np.asarray(rows, np.int64), [text_of[row] for row in rows])


def _repeats(split: _ComparedSplit) -> Repeats:
    """Rows that are equal to an earlier one; and those that are not, but nearly."""
    pairs = overlap.find_repeated(split.hashes)
    rows, earlier_rows = pairs.rows[:_MAX_LISTED].tolist(), pairs.others[:_MAX_LISTED].tolist()
    repeats = Repeats(
        repeated=len(pairs),
        repeated_share=len(pairs) / max(1, len(split.hashes)),
        repeated_rows=list(zip(rows, earlier_rows, strict=True)),
    )
    if split.sample is None or not split.sample.texts:
        return repeats
    clusters = near_duplicates.clusters(split.sample.texts, NEAR)
    return dataclasses.replace(
        repeats,
        near_compared=len(clusters),
        near_repeated=len(clusters) - len(np.unique(clusters)),
    )


def _training_overlap(split: _ComparedSplit, training: Sequence[_ComparedSplit]) -> TrainingOverlap:
    """Rows that are equal to one that is trained on; and those that are not, but nearly."""
    pairs = overlap.find_shared(split.hashes, [each.hashes for each in training])
    shared_rows = [
        (int(row), training[place].name, int(other))
        for row, place, other in zip(pairs.rows, pairs.places, pairs.others, strict=True)
    ]
    result = TrainingOverlap(
        shared=len(pairs),
        shared_share=len(pairs) / max(1, len(split.hashes)),
        shared_rows=shared_rows[:_MAX_LISTED],
    )
    samples = [(each.name, each.sample) for each in training if each.sample is not None]
    if split.sample is None or not split.sample.texts or not samples:
        return result
    # Rows that are equal to one are counted already.
    rest = np.flatnonzero(~np.isin(split.sample.rows, pairs.rows))
    references = [text for _, sample in samples for text in sample.texts]
    origins = [(name, int(row)) for name, sample in samples for row in sample.rows]
    similarity, nearest = near_duplicates.nearest_similarity(
        [split.sample.texts[i] for i in rest], references
    )
    order = np.argsort(-similarity, kind="stable")[:_MAX_LISTED].tolist()
    return dataclasses.replace(
        result,
        near_shared=int((similarity >= NEAR).sum()),
        nearest=[
            (int(split.sample.rows[rest[i]]), *origins[nearest[i]], float(similarity[i]))
            for i in order
            if nearest[i] >= 0
        ],
    )
