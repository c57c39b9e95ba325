"""What came in, what went and why, and what is left: by kind and split, as JSON and as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.preparation import stages
from research.preparation.documents import Ranges
from research.preparation.stages import Stage
from research.reports import page
from research.reports.page import Column

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


def count(
    ranges: Ranges, measured: Stage, rules: Sequence[tuple[Stage, Sequence[str]]]
) -> tuple[dict[str, dict[str, dict[str, Any]]], np.ndarray]:
    """Counts documents by kind, split, and what removed them; reads one range after another.

    Args:
      ranges: of all documents.
      measured: sizes of documents.
      rules: the stages that remove, in order, with the names of their rules. A document that
        several would remove counts with the first. A stage without names has one rule, its own.

    Returns:
      split -> kind -> documents, bytes, bad_lines, removed (stage -> rule -> documents),
      removed_bytes; and [ranges] how many documents of each stay.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    kept = np.zeros(len(ranges), np.int64)
    for each in ranges:
        part = each.part
        about = found.setdefault(part.split, {}).setdefault(
            part.kind,
            {
                "documents": 0,
                "bytes": 0,
                "bad_lines": part.bad_lines,
                "removed": {
                    stage.name: dict.fromkeys(names or (stage.name,), 0) for stage, names in rules
                },
                "removed_bytes": 0,
            },
        )
        sizes = stages.load(measured.file(each.number))["bytes"]
        about["documents"] += len(each)
        about["bytes"] += int(sizes.sum())
        gone = np.zeros(len(each), bool)
        for stage, names in rules:
            marks = stages.load(stage.file(each.number))
            here = (marks >= 0) & ~gone
            gone |= here
            removed = about["removed"][stage.name]
            if names:
                for number, times in enumerate(np.bincount(marks[here], minlength=len(names))):
                    removed[names[number]] += int(times)
            else:
                removed[stage.name] += int(here.sum())
        about["removed_bytes"] += int(sizes[gone].sum())
        kept[each.number] = len(each) - int(gone.sum())
    return found, kept


def add_output(
    found: dict[str, dict[str, dict[str, Any]]], content: Mapping[str, Any], stage: Stage
) -> None:
    """Adds what the dataset holds of each kind: documents, bytes, tokens, quantiles of tokens."""
    for split, kinds in found.items():
        held = content["splits"].get(split, {"kinds": []})["kinds"]
        first = 0
        for about in held:
            path = stage.folder / "index" / f"{split}.tokens.npy"
            lengths = stages.load(path, mapped=True)[first : first + about["documents"]]
            first += about["documents"]
            numbers = {name: about[name] for name in ("documents", "bytes", "tokens")}
            kinds[about["kind"]]["kept"] = {**numbers, "tokens_quantiles": quantiles(lengths)}
        for about in kinds.values():
            about.setdefault("kept", {"documents": 0, "bytes": 0, "tokens": 0})


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


def table(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A line for each split and kind, what each rule removed, and bad lines that were left out."""
    rows, bad = [], []
    for split, kinds in found.items():
        for kind, about in kinds.items():
            gone = {name: sum(rules.values()) for name, rules in about["removed"].items()}
            left = about["kept"]
            rows.append(
                {
                    "split": split,
                    "kind": kind,
                    "documents": about["documents"],
                    "bytes": about["bytes"],
                    "removed": ", ".join(f"{name} {n:,}" for name, n in gone.items() if n) or None,
                    "left": left["documents"],
                    "left_bytes": left["bytes"],
                    "tokens": left["tokens"],
                    "median": left.get("tokens_quantiles", {}).get("50%"),
                }
            )
            if about["bad_lines"]:
                bad.append(f"{kind}, {split}: {about['bad_lines']:,}")
    lines = [page.text_table(rows, _COLUMNS), f"removed: {removed(found)}"]
    return "\n".join([*lines, *([f"bad lines left out: {'; '.join(bad)}"] if bad else [])])


def removed(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """How many documents each rule removed, in words."""
    rules: dict[str, int] = {}
    for kinds in found.values():
        for about in kinds.values():
            for stage, each in about["removed"].items():
                for rule, times in each.items():
                    name = stage if rule == stage else f"{stage}: {rule}"
                    rules[name] = rules.get(name, 0) + times
    return ", ".join(f"{name} {times:,}" for name, times in rules.items() if times) or "nothing"
