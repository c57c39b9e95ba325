"""Reading packed batches, tokenising, and the index of a corpus of many billions of tokens.

`reading`: a run's own batches from the five built-in kinds of text, by one process, beside Grain
alone, which only stacks rows of one array. `tokenising`: a source into the cache, beside the
`tokenizers` library's own call on the same texts in memory. `packing`: rows that lengths which must
not be cut take, beside best fit and a proved bound. `index`: the plan of a corpus whose
lengths are drawn (a few hundred tokens a document, as web pages have); its tokens are a file with
holes, which takes no disk. `deduplication`: near duplicates as a
corpus doubles, beside the exact similarity of all pairs (needs `tools/setup prepare`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np

from research.benchmarks import deduplication, harness
from research.data.packing import best_fit, cutting_stock, planning
from research.objectives.causal import Causal
from research.text.token_table import Ragged, TokenTable
from research.text.tokenizer import Tokenizer

PARTS = ("reading", "tokenising", "packing", "index", "deduplication")
OBJECTIVES = ("causal", "fill_in_the_middle", "prefix_lm", "span_corruption", "masked")
CONTENDER = "research.benchmarks.data_contender"
GIB = 2**30
# Lengths as parts of a row, which best fit alone packs badly.
LENGTHS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "lognormal around a third": lambda draw, n: draw.lognormal(np.log(1 / 3), 0.3, n),
    "normal around a third": lambda draw, n: draw.normal(1 / 3, 1 / 30, n),
    "uniform, 1/4 to 1/2": lambda draw, n: draw.uniform(1 / 4, 1 / 2, n),
    "uniform, 0.15 to 0.35": lambda draw, n: draw.uniform(0.15, 0.35, n),
    "uniform, 0.165 to 0.169": lambda draw, n: draw.uniform(0.165, 0.169, n),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--length", type=harness.positive, default=2048, help="tokens in a row")
    parser.add_argument("--batch", type=harness.positive, default=64, help="rows in a batch")
    parser.add_argument("--billions", type=float, default=10.0, help="tokens of the index")
    deduplication.add_arguments(parser)
    parser.add_argument("--rounds", type=harness.positive, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each in a round")


def main(arguments: argparse.Namespace) -> harness.Results:
    results: harness.Results = dict(harness.machine())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = str(Path(folder) / "tokenizer.json")
        if set(arguments.parts) & {"reading", "tokenising"}:
            from research.benchmarks.data_contender import train_tokenizer

            train_tokenizer().save(Path(tokenizer))
        if "reading" in arguments.parts:
            results |= _reading(arguments, tokenizer)
        if "tokenising" in arguments.parts:
            results |= _tokenising(arguments, tokenizer)
        if "packing" in arguments.parts:
            results |= _packing(arguments)
        if "index" in arguments.parts:
            results |= _index(arguments, Path(folder))
    if "deduplication" in arguments.parts:
        print("\nnear duplicates, one worker")
        own_results = deduplication.main(arguments)
        results |= {f"deduplication.{name}": value for name, value in own_results.items()}
    return results


def _reading(arguments: argparse.Namespace, tokenizer: str) -> harness.Results:
    shape = {"sequence_length": arguments.length, "batch_size": arguments.batch, "steps": 8}
    entrants = {"Grain alone": (CONTENDER, shape | {"what": "grain"})}
    for objective in arguments.objectives:
        settings = {"what": "batches", "objective": objective, "tokenizer": tokenizer}
        entrants[objective] = (CONTENDER, shape | settings)
    with harness.contenders(entrants) as ready:
        times = harness.take_turns(ready, arguments.rounds, arguments.seconds)
        memory = {one.name: one.peak_memory() for one in ready}
    results: harness.Results = {}
    print(f"\nreading {arguments.batch} rows of {arguments.length}, million tokens/s in a process")
    for one in ready:
        speed = harness.rate(one.info["tokens"], times[one.name]) / 1e6
        pieces = f", {one.info['pieces']:.1f} pieces a row" if "pieces" in one.info else ""
        print(f"  {one.name:20} {speed:.1f}   {memory[one.name] / GIB:.2f} GiB{pieces}")
        results |= speed.to_results(f"reading.{one.name}.million_tokens_per_second")
        results[f"reading.{one.name}.peak_bytes"] = memory[one.name]
    return results


def _tokenising(arguments: argparse.Namespace, tokenizer: str) -> harness.Results:
    entrants = {
        what: (CONTENDER, {"what": what, "tokenizer": tokenizer})
        for what in ("tokenise", "library")
    }
    with harness.contenders(entrants) as ready:
        times = harness.take_turns(ready, arguments.rounds, arguments.seconds)
    results: harness.Results = {}
    print("\ntokenising, million bytes/s")
    for one in ready:
        speed = harness.rate(one.info["bytes"], times[one.name]) / 1e6
        print(f"  {one.name:20} {speed:.2f}")
        results |= speed.to_results(f"tokenising.{one.name}.million_bytes_per_second")
    share = harness.ratio(times["tokenise"], times["library"])
    print(f"  of the library's own rate: {share:.3f}")
    return results | share.to_results("tokenising.ratio")


def _packing(arguments: argparse.Namespace) -> harness.Results:
    """Rows that 20,000 examples of each kind of lengths take; the same on every machine."""
    results: harness.Results = {}
    print(f"\npacking 20,000 examples into rows of {arguments.length}, none of them cut")
    for name, draw in LENGTHS.items():
        parts = draw(np.random.default_rng(0), 20_000)
        sizes = np.clip(parts * arguments.length, 1, arguments.length).astype(np.int64)
        start = time.perf_counter()
        rows = int(cutting_stock.assign(sizes, arguments.length).max()) + 1
        seconds = time.perf_counter() - start
        simple = int(best_fit.best_fit(sizes, arguments.length).max()) + 1
        fewest = cutting_stock.min_rows(sizes, arguments.length)
        print(f"  {name:26} best fit {simple:,}, Graft {rows:,} ({seconds:.1f} s), ", end="")
        print(f"no plan below {fewest:,}")
        results |= {
            f"packing.{name}.best_fit_rows": simple,
            f"packing.{name}.rows": rows,
            f"packing.{name}.min_rows": fewest,
            f"packing.{name}.seconds": seconds,
        }
    return results


def _index(arguments: argparse.Namespace, folder: Path) -> harness.Results:
    """Makes a table, its examples, and their plan."""
    lengths = np.random.default_rng(0).lognormal(6, 1, int(arguments.billions * 1e9 / 665))
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(np.maximum(lengths, 2).astype(np.int64), out=offsets[1:])
    np.save(folder / "offsets.npy", offsets)
    total, documents = int(offsets[-1]), len(lengths)
    del lengths, offsets
    np.lib.format.open_memmap(folder / "tokens.npy", "w+", np.uint32, (total,))
    values = np.load(folder / "tokens.npy", mmap_mode="r")

    with harness.sampled_memory() as sample:
        offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        documents_ = Ragged(values, offsets)
        table = TokenTable("made", {"text": documents_}, {"text": np.diff(offsets)})
        examples = Causal().prepare(table, cast(Tokenizer, _IdsOnly()), arguments.length)
        plan = planning.plan(examples.lengths, arguments.length, splittable=True, pack=True, seed=0)
    print(
        f"\nindex of {total / 1e9:.2f} billion tokens in {documents:,} documents\n"
        f"  rows of {arguments.length}, {plan.fill:.2%} full: {sample.seconds:.1f} s, at most "
        f"{sample.bytes / GIB:.2f} GiB, kept {sample.after / GIB:.2f} GiB"
    )
    return {
        "index.tokens": total,
        "index.documents": documents,
        "index.seconds": sample.seconds,
        "index.peak_bytes": sample.bytes,
        "index.kept_bytes": sample.after,
        "index.fill": plan.fill,
    }


class _IdsOnly:
    """A tokenizer's ids, which are all that planning needs."""

    begin_id = 0
