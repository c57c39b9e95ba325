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

from research.preparation import documents, ngrams, running, stages
from research.preparation.config import Contamination
from research.preparation.documents import InputError, Part, Range, Ranges
from research.preparation.duplicates import gather, ordered
from research.preparation.stages import Stage
from research.text.normalize import words_of

if TYPE_CHECKING:
    from apache_beam import Pipeline

# Words of the n-gram, its hash, and which of the config's evaluations holds it.
_NGRAM = np.dtype([("words", "<u2"), ("hash", "<u8"), ("evaluation", "<i2")])
_LABELLED = ("prompt", "completion")


def evaluation_parts(config: Contamination) -> list[Part]:
    """Every split that must not be among the documents.

    Raises:
        ValueError, FileNotFoundError: a source cannot be opened, or is empty.
    """
    return [
        documents.open_part(evaluation.source, split)
        for evaluation in config.evaluations
        for split in evaluation.splits or (evaluation.source.split,)
    ]


def names(config: Contamination) -> tuple[str, ...]:
    """Of the evaluations, in their order."""
    return tuple(evaluation.source.name for evaluation in config.evaluations)


def index(stage: Stage) -> epath.Path:
    """The file of all n-grams."""
    return stage.folder / "ngrams.npy"


def collect(root: "Pipeline", stage: Stage, config: Contamination, ranges: Ranges) -> None:
    """Builds the stage that holds the n-grams of all evaluation examples.

    Args:
      root: where the pipeline starts.
      stage: gets one file, `index`.
      config: what is looked for.
      ranges: of the evaluations' parts.
    """
    import apache_beam as beam

    (
        running.spread(root, ranges)
        | "Find" >> beam.Map(functools.partial(_collect, config)).with_output_types(bytes)
        | "One key" >> beam.Map(lambda part: (0, part)).with_output_types(tuple[int, bytes])
        | "Together" >> beam.GroupByKey()
        | "Write" >> beam.MapTuple(functools.partial(_join, stage))
    )


def _collect(config: Contamination, chosen: Range) -> bytes:
    number = names(config).index(chosen.part.kind)
    fields = config.evaluations[number].fields
    source = documents.opened(chosen.part)
    found: list[np.ndarray] = []
    for row in range(chosen.start, chosen.stop):
        try:
            example = source[row]
            texts = list(_texts(example, fields, source.format))
        except ValueError as error:
            raise InputError(f"evaluation {source.name}, row {row}: {error}") from error
        for text in texts:
            hashes = ngrams.word_hashes(words_of(text))
            size = min(config.words, len(hashes))
            if size >= config.min_words:
                grams = ngrams.ngram_hashes(hashes, size)
                records = np.zeros(len(grams), _NGRAM)
                records["words"], records["hash"], records["evaluation"] = size, grams, number
                found.append(records)
    return _distinct(np.concatenate(found)).tobytes() if found else b""


def _texts(example: Any, fields: Sequence[str] | None, form: str) -> Iterator[str]:
    if fields is None and "messages" in example:
        yield from (message["content"] for message in example["messages"])
        return
    if fields is None:
        fields = _LABELLED if "completion" in example else ("text",)
    for field in fields:
        if not isinstance(example.get(field), str):
            raise ValueError(
                f"field {field!r} is no text (format {form}; there are {sorted(example)}): name "
                "what is to be looked for in the evaluation's `fields`."
            )
        yield example[field]


def _distinct(records: np.ndarray) -> np.ndarray:
    """Sorted by words and hash; of several evaluations with one n-gram the first."""
    records = ordered(records, "words", "hash", "evaluation")
    again = np.zeros(len(records), bool)
    again[1:] = (records["words"][1:] == records["words"][:-1]) & (
        records["hash"][1:] == records["hash"][:-1]
    )
    return records[~again]


def _join(stage: Stage, _: int, parts: Iterable[bytes]) -> None:
    stages.save(index(stage), _distinct(gather(parts, _NGRAM)))


def check_found(stage: Stage, config: Contamination) -> dict[str, int]:
    """How many n-grams of each evaluation are looked for.

    Raises:
        ValueError: none of one of them: all of its texts are too short.
    """
    held = stages.load(index(stage), mapped=True)["evaluation"]
    counts = np.bincount(held, minlength=len(config.evaluations)).tolist()
    found = dict(zip(names(config), counts, strict=True))
    for name, count in found.items():
        if not count:
            raise ValueError(
                f"evaluation {name!r}: no text of it has {config.min_words} words that no "
                "evaluation before it has, so that it could not be found among documents: lower "
                "min_words, name longer fields, or leave it out."
            )
    return found


def mark(stage: Stage, collected: Stage, chosen: Range) -> None:
    """Writes for each document of a range -1, or which evaluation it shares an n-gram with."""
    wanted = _by_size(collected)
    marks = np.full(len(chosen), -1, np.int64)
    for place, text in documents.texts(chosen):
        hashes = ngrams.word_hashes(words_of(text))
        for size, (known, evaluations) in wanted.items():
            grams = ngrams.ngram_hashes(hashes, size)
            at = np.minimum(np.searchsorted(known, grams), len(known) - 1)
            hits = at[known[at] == grams]
            if len(hits):
                marks[place] = evaluations[hits].min()
                break
    stages.save(stage.file(chosen.number), marks)


def _by_size(collected: Stage) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Words of an n-gram -> sorted hashes and evaluations; most words first."""
    return _read(os.fspath(index(collected)))


@functools.lru_cache(maxsize=2)
def _read(path: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    held = stages.load(epath.Path(path), mapped=True)
    sizes, first = np.unique(held["words"], return_index=True)
    edges = [*first.tolist(), len(held)]
    found = {}
    for size, start, stop in zip(sizes.tolist(), edges, edges[1:], strict=False):
        found[size] = (
            np.ascontiguousarray(held["hash"][start:stop]),
            held["evaluation"][start:stop],
        )
    return dict(sorted(found.items(), reverse=True))
