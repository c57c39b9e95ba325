"""Statistics of a preparation by split and kind: documents read, removed and kept, with reasons."""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np

from research.preparation import stages
from research.preparation.documents import RowRanges
from research.preparation.stages import Stage
from research.reports.tables import Column, text_table

_QUANTILES = (0, 10, 50, 90, 100)
_BLOCK = 2**22

_COLUMNS = [
    Column("split", "split"),
    Column("kind", "kind"),
    Column("documents", "documents", format=","),
    Column("bytes", "text", "MB", 1e-6, ".2f"),
    Column("removed", "removed by"),
    Column("left", "left", format=","),
    Column("left_bytes", "text left", "MB", 1e-6, ".2f"),
    Column("tokens", "tokens", format=","),
    Column("median", "median", "tokens", format=","),
]


class KeptStatistics(TypedDict):
    """Documents of one kind in the dataset."""

    documents: int
    bytes: int
    tokens: int
    tokens_quantiles: NotRequired[dict[str, int]]


class KindStatistics(TypedDict):
    """Documents of one kind in one split: read, removed and kept; as in statistics.json."""

    documents: int
    bytes: int
    # Records that could not be read and were left out.
    bad_lines: int
    # stage -> rule -> documents
    removed: dict[str, dict[str, int]]
    removed_bytes: int
    # Added once the dataset is written.
    kept: NotRequired[KeptStatistics]


# split -> kind -> numbers
Statistics = dict[str, dict[str, KindStatistics]]


def count(
    ranges: RowRanges, documents_stage: Stage, rules: Sequence[tuple[Stage, Sequence[str]]]
) -> tuple[Statistics, np.ndarray]:
    """Counts documents by kind, split, and what removed them; reads one range after another.

    Args:
      ranges: of all documents.
      documents_stage: has the sizes of documents.
      rules: the stages that remove, in order, with the names of their rules. A document that
        several would remove counts with the first. A stage without names has one rule, its own.

    Returns:
      the statistics, without what the dataset holds; and [ranges] how many documents of each stay.
    """
    statistics: Statistics = {}
    kept_counts = np.zeros(len(ranges), np.int64)
    for row_range in ranges:
        source_split = row_range.source_split
        numbers = statistics.setdefault(source_split.split, {}).setdefault(
            source_split.kind, _no_documents(source_split.bad_lines, rules)
        )
        sizes = stages.load(documents_stage.file(row_range.number))["bytes"]
        numbers["documents"] += len(row_range)
        numbers["bytes"] += int(sizes.sum())
        is_removed = np.zeros(len(row_range), bool)
        for stage, names in rules:
            marks = stages.load(stage.file(row_range.number))
            is_hit = (marks >= 0) & ~is_removed
            is_removed |= is_hit
            removals = numbers["removed"][stage.name]
            if names:
                for rule, times in enumerate(np.bincount(marks[is_hit], minlength=len(names))):
                    removals[names[rule]] += int(times)
            else:
                removals[stage.name] += int(is_hit.sum())
        numbers["removed_bytes"] += int(sizes[is_removed].sum())
        kept_counts[row_range.number] = len(row_range) - int(is_removed.sum())
    return statistics, kept_counts


def _no_documents(bad_lines: int, rules: Sequence[tuple[Stage, Sequence[str]]]) -> KindStatistics:
    return {
        "documents": 0,
        "bytes": 0,
        "bad_lines": bad_lines,
        "removed": {stage.name: dict.fromkeys(names or (stage.name,), 0) for stage, names in rules},
        "removed_bytes": 0,
    }


def add_output(statistics: Statistics, content: Mapping[str, Any], stage: Stage) -> None:
    """Adds what the dataset holds of each kind: documents, bytes, tokens, quantiles of tokens.

    Args:
      statistics: from `count`.
      content: the dataset's content.json.
      stage: holds the dataset.
    """
    for split, kinds in statistics.items():
        first = 0
        for output in content["splits"].get(split, {"kinds": []})["kinds"]:
            path = stage.folder / "index" / f"{split}.tokens.npy"
            lengths = stages.load(path, memory_map=True)[first : first + output["documents"]]
            first += output["documents"]
            kinds[output["kind"]]["kept"] = {
                "documents": output["documents"],
                "bytes": output["bytes"],
                "tokens": output["tokens"],
                "tokens_quantiles": quantiles(lengths),
            }
        for numbers in kinds.values():
            numbers.setdefault("kept", {"documents": 0, "bytes": 0, "tokens": 0})


def quantiles(lengths: np.ndarray) -> dict[str, int]:
    """Nearest-rank quantiles, exactly; memory goes with the longest document, not their number."""
    counts = np.zeros(0, np.int64)
    for start in range(0, len(lengths), _BLOCK):
        block = np.bincount(lengths[start : start + _BLOCK])
        if len(block) > len(counts):
            counts, block = block, counts
        counts[: len(block)] += block
    running = np.cumsum(counts)
    ranks = [max(1, -(-len(lengths) * share // 100)) for share in _QUANTILES]
    return {
        f"{share}%": int(np.searchsorted(running, rank))
        for share, rank in zip(_QUANTILES, ranks, strict=True)
    }


def table(statistics: Statistics) -> str:
    """Markdown with a line for each split and kind, removals by rule, and bad lines left out."""
    rows, bad_lines = [], []
    for split, kinds in statistics.items():
        for kind, numbers in kinds.items():
            removals = {stage: sum(rules.values()) for stage, rules in numbers["removed"].items()}
            kept_part = numbers["kept"]
            rows.append(
                {
                    "split": split,
                    "kind": kind,
                    "documents": numbers["documents"],
                    "bytes": numbers["bytes"],
                    "removed": ", ".join(f"{stage} {n:,}" for stage, n in removals.items() if n)
                    or None,
                    "left": kept_part["documents"],
                    "left_bytes": kept_part["bytes"],
                    "tokens": kept_part["tokens"],
                    "median": kept_part.get("tokens_quantiles", {}).get("50%"),
                }
            )
            if numbers["bad_lines"]:
                bad_lines.append(f"{kind}, {split}: {numbers['bad_lines']:,}")
    lines = [text_table(rows, _COLUMNS), f"removed: {describe_removals(statistics)}"]
    if bad_lines:
        lines.append(f"bad lines left out: {'; '.join(bad_lines)}")
    return "\n".join(lines)


def describe_removals(statistics: Statistics) -> str:
    """Number of documents that each rule removed, in words."""
    totals: dict[str, int] = {}
    for kinds in statistics.values():
        for numbers in kinds.values():
            for stage, rules in numbers["removed"].items():
                for rule, times in rules.items():
                    name = stage if rule == stage else f"{stage}: {rule}"
                    totals[name] = totals.get(name, 0) + times
    return ", ".join(f"{name} {times:,}" for name, times in totals.items() if times) or "nothing"
