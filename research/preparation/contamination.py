"""Documents that hold an evaluation example, found by the word n-grams that they share with it.

The n-grams of all evaluation examples are hashed once into one sorted array, which every worker
process holds: 12 bytes an n-gram. The documents' own n-grams go nowhere.
"""

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from research.preparation import documents, ngrams, runner, stages
from research.preparation.config import Contamination
from research.preparation.documents import InputError, RowRange, RowRanges, SourceSplit
from research.preparation.duplicates import join_parts, sort_records
from research.preparation.stages import Stage
from research.text.conversation import message_texts
from research.text.normalize import words_of

if TYPE_CHECKING:
    from apache_beam import Pipeline

# Words of the n-gram, its hash, and which of the config's evaluations holds it.
_NGRAM = np.dtype([("words", "<u2"), ("hash", "<u8"), ("evaluation", "<i2")])
_LABELLED_FIELDS = ("prompt", "completion")


def evaluation_splits(config: Contamination) -> list[SourceSplit]:
    """Every split that must not be among the documents.

    Raises:
        ValueError, FileNotFoundError: a source cannot be opened, or is empty.
    """
    return [
        documents.open_split(evaluation.source, split)
        for evaluation in config.evaluations
        for split in evaluation.splits or (evaluation.source.split,)
    ]


def evaluation_names(config: Contamination) -> tuple[str, ...]:
    """Names of the evaluations, in their order."""
    return tuple(evaluation.source.name for evaluation in config.evaluations)


def ngrams_path(stage: Stage) -> epath.Path:
    """File of all n-grams."""
    return stage.folder / "ngrams.npy"


def collect_ngrams(
    root: "Pipeline", stage: Stage, config: Contamination, ranges: RowRanges
) -> None:
    """Builds the stage that holds the n-grams of all evaluation examples.

    Args:
      root: where the pipeline starts.
      stage: gets one file, `ngrams_path`.
      config: what is looked for.
      ranges: of the evaluations' splits.
    """
    import apache_beam as beam

    (
        runner.distribute(root, ranges)
        | "Find" >> beam.Map(functools.partial(_collect_ngrams, config)).with_output_types(bytes)
        | "One key" >> beam.Map(lambda part: (0, part)).with_output_types(tuple[int, bytes])
        | "Together" >> beam.GroupByKey()
        | "Write" >> beam.MapTuple(functools.partial(_join_ngrams, stage))
    )


def _collect_ngrams(config: Contamination, row_range: RowRange) -> bytes:
    number = evaluation_names(config).index(row_range.source_split.kind)
    fields = config.evaluations[number].fields
    source = documents.open_cached(row_range.source_split)
    ngram_records: list[np.ndarray] = []
    for row in range(row_range.start, row_range.stop):
        try:
            example = source[row]
            texts = list(_example_texts(example, fields, source.format))
        except ValueError as error:
            raise InputError(f"evaluation {source.name}, row {row}: {error}") from error
        for text in texts:
            hashes = ngrams.word_hashes(words_of(text))
            size = min(config.words, len(hashes))
            if size >= config.min_words:
                grams = ngrams.ngram_hashes(hashes, size)
                records = np.zeros(len(grams), _NGRAM)
                records["words"], records["hash"], records["evaluation"] = size, grams, number
                ngram_records.append(records)
    return _distinct_ngrams(np.concatenate(ngram_records)).tobytes() if ngram_records else b""


def _example_texts(example: Any, fields: Sequence[str] | None, form: str) -> Iterator[str]:
    if fields is None and "messages" in example:
        for message in example["messages"]:
            yield from message_texts(message)
        return
    if fields is None:
        fields = _LABELLED_FIELDS if "completion" in example else ("text",)
    for field in fields:
        if not isinstance(example.get(field), str):
            raise ValueError(
                f"field {field!r} is no text (format {form}; there are {sorted(example)}): name "
                "what is to be looked for in the evaluation's `fields`."
            )
        yield example[field]


def _distinct_ngrams(records: np.ndarray) -> np.ndarray:
    """Sorted by words and hash; of several evaluations with one n-gram the first."""
    records = sort_records(records, "words", "hash", "evaluation")
    is_repeat = np.zeros(len(records), bool)
    is_repeat[1:] = (records["words"][1:] == records["words"][:-1]) & (
        records["hash"][1:] == records["hash"][:-1]
    )
    return records[~is_repeat]


def _join_ngrams(stage: Stage, _: int, parts: Iterable[bytes]) -> None:
    stages.save(ngrams_path(stage), _distinct_ngrams(join_parts(parts, _NGRAM)))


def check_searchable(stage: Stage, config: Contamination) -> dict[str, int]:
    """Number of n-grams of each evaluation that are looked for.

    Raises:
        ValueError: none of one of them: all of its texts are too short.
    """
    evaluation_numbers = stages.load(ngrams_path(stage), memory_map=True)["evaluation"]
    counts = np.bincount(evaluation_numbers, minlength=len(config.evaluations)).tolist()
    ngram_counts = dict(zip(evaluation_names(config), counts, strict=True))
    for name, count in ngram_counts.items():
        if not count:
            raise ValueError(
                f"evaluation {name!r}: no text of it has {config.min_words} words that no "
                "evaluation before it has, so that it could not be found among documents: lower "
                "min_words, name longer fields, or leave it out."
            )
    return ngram_counts


def mark_contaminated(stage: Stage, evaluations_stage: Stage, row_range: RowRange) -> None:
    """Writes for each document of a range -1, or which evaluation it shares an n-gram with."""
    ngrams_by_size = _ngrams_by_size(evaluations_stage)
    marks = np.full(len(row_range), -1, np.int64)
    for place, text in documents.texts(row_range):
        hashes = ngrams.word_hashes(words_of(text))
        for size, (known_hashes, evaluations) in ngrams_by_size.items():
            grams = ngrams.ngram_hashes(hashes, size)
            places = np.minimum(np.searchsorted(known_hashes, grams), len(known_hashes) - 1)
            hits = places[known_hashes[places] == grams]
            if len(hits):
                marks[place] = evaluations[hits].min()
                break
    stages.save(stage.file(row_range.number), marks)


def _ngrams_by_size(evaluations_stage: Stage) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Words of an n-gram -> sorted hashes and evaluations; most words first."""
    return _load_ngrams(os.fspath(ngrams_path(evaluations_stage)))


@functools.lru_cache(maxsize=2)
def _load_ngrams(path: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    records = stages.load(epath.Path(path), memory_map=True)
    sizes, first = np.unique(records["words"], return_index=True)
    edges = [*first.tolist(), len(records)]
    by_size = {}
    for size, start, stop in zip(sizes.tolist(), edges, edges[1:], strict=False):
        by_size[size] = (
            np.ascontiguousarray(records["hash"][start:stop]),
            records["evaluation"][start:stop],
        )
    return dict(sorted(by_size.items(), reverse=True))
