"""Near-duplicate removal as the corpus doubles: documents a second, memory, recall, precision.

The corpus is the built-in text with edited copies of some documents among it: words replaced,
dropped or put in, up to a sixth of them. Each size runs in a process of its own, on one worker, so
that its memory is its own: that of Beam's local runner, which keeps what other runners put on
disks, and of the worker. Truth is the exact Jaccard similarity of all pairs
(research/text/near_duplicates.py), computed at the smallest size. Needs `tools/setup prepare`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from research.benchmarks import harness

SOURCES = ("graft_books", "graft_code", "graft_encyclopedia", "graft_forum", "graft_web")
ENVIRONMENT = harness.ROOT / ".venv" / "prepare"
# Characters of a passage, and share of the documents that are edited copies.
PASSAGE, COPIES = 1500, 0.3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--documents", type=harness.positive, default=5000, help="to start with")
    parser.add_argument("--doublings", type=int, default=3, help="of the documents")
    parser.add_argument("--threshold", type=float, default=0.8)


def main(arguments: argparse.Namespace) -> harness.Results:
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        python = Path(sys.executable)
    results: harness.Results = dict(harness.machine())
    with tempfile.TemporaryDirectory() as folder:
        sizes = [arguments.documents * 2**i for i in range(arguments.doublings + 1)]
        texts = _corpus(max(sizes))
        smaller = None  # the numbers of half as many
        for size in sizes:
            place = Path(folder) / str(size)
            place.mkdir()
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[:size])
            (place / "made.train.jsonl").write_text(lines, encoding="utf-8")
            command = [str(python), "-m", __name__, str(place), str(arguments.threshold)]
            process = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True)
            if process.returncode:
                raise RuntimeError(f"{size} documents: {process.stderr[-2000:]}")
            numbers: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
            marks = np.load(place / "marks.npy")
            numbers["removed"] = int((marks >= 0).sum())
            if smaller is None:
                numbers |= _judge(texts[:size], marks, arguments.threshold)
            else:
                numbers["seconds_of_half"] = numbers["seconds"] / smaller["seconds"]
            smaller = numbers
            results |= {f"{size}.{name}": value for name, value in numbers.items()}
            print(_describe(size, numbers), flush=True)
    return results


def _describe(size: int, numbers: Mapping[str, float]) -> str:
    line = (
        f"{size:,} documents: {size / numbers['seconds']:,.0f} documents/s, "
        f"{numbers['bytes'] / size / 2**10:.2f} KiB a document beyond "
        f"{numbers['before'] / 2**20:.0f} MiB at the start, {numbers['removed']:,} removed"
    )
    if "recall" in numbers:
        return (
            f"{line}; recall {numbers['recall']:.4f}, precision {numbers['precision']:.4f} "
            f"(lowest similarity {numbers['lowest_similarity']:.2f})"
        )
    return f"{line}; {numbers['seconds_of_half']:.2f} times the seconds of half as many"


def _corpus(size: int) -> list[str]:
    """Passages of the built-in text, `COPIES` of them edited; the first n are a corpus as well."""
    from research.data import builders

    passages = []
    for name in SOURCES:
        source = builders.load(name, "train")
        for row in range(len(source)):
            text = source[row]["text"].decode()
            passages += [text[at : at + PASSAGE] for at in range(0, len(text), PASSAGE)]
    random = np.random.default_rng(0)
    passages = [passages[i] for i in random.permutation(len(passages))]
    min_passages = int(size * (1 - COPIES)) + 1
    if len(passages) < min_passages:
        raise SystemExit(f"the built-in text has {len(passages):,} passages, not {min_passages:,}")
    texts: list[str] = []
    originals = iter(passages)
    while len(texts) < size:
        is_copy = texts and random.random() < COPIES
        original = texts[random.integers(len(texts))] if is_copy else ""
        texts.append(_edit(original, random) if is_copy else next(originals))
    return texts


def _edit(text: str, random: np.random.Generator) -> str:
    words = text.split(" ")
    share = random.uniform(0, 1 / 30) if random.random() < 0.8 else random.uniform(0, 1 / 6)
    chances = random.random(len(words)) < share
    result = []
    for word, is_edit in zip(words, chances.tolist(), strict=True):
        kind = random.integers(3) if is_edit else 3
        result += [["changed"], [], ["put", word], [word]][kind]
    return " ".join(result)


def _judge(texts: list[str], marks: np.ndarray, threshold: float) -> dict[str, float]:
    """Recall over documents that have an earlier near duplicate, precision over pairs found."""
    from research.text import near_duplicates

    matrix = near_duplicates.shingle_matrix(texts)
    has_earlier = np.zeros(len(texts), bool)
    for rows, columns, similarity in near_duplicates._similarities(matrix, matrix, "jaccard"):
        has_earlier[rows[(similarity >= threshold) & (columns < rows)]] = True
    duplicates = np.flatnonzero(marks >= 0)
    sets = {i: near_duplicates.shingles(texts[i]) for i in {*duplicates, *marks[duplicates]}}
    pairs = [(sets[i], sets[j]) for i, j in zip(duplicates, marks[duplicates], strict=True)]
    exact = np.asarray([len(one & two) / len(one | two) for one, two in pairs])
    return {
        "recall": float((marks[has_earlier] >= 0).mean()),
        "precision": float((exact >= threshold).mean()),
        # The estimate errs near the threshold: how far below a pair was.
        "lowest_similarity": float(exact.min()),
        "near_pairs": float(has_earlier.sum()),
    }


def _run(folder: Path, threshold: float) -> None:
    """The measured process."""
    from research.data.sources import JsonlConfig
    from research.preparation import documents, minhash, stages
    from research.preparation.config import NearDuplicates
    from research.preparation.runner import Runner
    from research.preparation.stages import Stage

    source = JsonlConfig("made", str(folder / "made.{split}.jsonl"))
    ranges = documents.RowRanges((documents.open_split(source, "train"),), 1024)
    config = NearDuplicates(threshold=threshold)
    stage = Stage("near", str(folder), {})
    runner = Runner(["--direct_num_workers=1"])
    runner.for_each([0], int)  # Beam itself is loaded, and not measured
    with harness.sampled_memory() as sample:
        stage.build(
            lambda: runner.run(
                lambda root: minhash.mark_near_duplicates(root, stage, config, [], ranges)
            )
        )
    marks = np.concatenate([stages.load(stage.file(each.number)) for each in ranges])
    np.save(folder / "marks.npy", marks)
    print(json.dumps(dataclasses.asdict(sample)))


if __name__ == "__main__":
    _run(Path(sys.argv[1]), float(sys.argv[2]))
