"""Trains a byte-level BPE tokenizer on the training text of a config's sources.

    graft tokenizer --config configs/quickstart/pretrain.py \\
        --vocabulary 4096 --out runs/quickstart/tokenizer.json

Each source gives the same number of bytes (`--bytes`, spread evenly over its documents), so that
no large source takes the whole vocabulary. The same text gives the same tokenizer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from research.config import cli
from research.runtime.terminal import show

if TYPE_CHECKING:
    from research.objectives.base import Objective


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.program_parser("tokenizer", __doc__)
    parser.add_argument("--vocabulary", type=int, required=True, help="number of tokens")
    parser.add_argument("--out", required=True, metavar="FILE", help="the tokenizer's JSON")
    parser.add_argument(
        "--bytes", type=int, default=2_000_000, help="text of each source (default 2,000,000)"
    )
    arguments = cli.parse(parser, argv)

    from research.data.sources import open_source
    from research.experiment import Experiment
    from research.runtime import storage
    from research.text import tokenizer

    with cli.clear_errors():
        storage.check_writable(storage.absolute(arguments.out).parent)
        data = cli.load(Experiment, arguments.config, arguments.overrides).data
        sources = zip(map(open_source, data.sources), data.all_objectives, strict=True)
        samples = (sample(source, objective, arguments.bytes) for source, objective in sources)
        trained = tokenizer.train(itertools.chain.from_iterable(samples), arguments.vocabulary)
        trained.save(arguments.out)
    show(f"{arguments.out}: {trained.vocabulary_size} tokens, {trained.fingerprint()[:16]}")
    if trained.vocabulary_size < arguments.vocabulary:
        show(f"(the text has no more pairs that occur twice; {arguments.vocabulary} were asked)")


def sample(source: Any, objective: Objective, limit: int) -> Iterator[str]:
    """Documents spread evenly over a source, about `limit` bytes in all."""
    total, stride = 0, 1
    while stride * 7 < len(source) // 64:  # a stride that is no period of a sorted source
        stride = stride * 2 + 1
    for start in range(stride):
        for index in range(start, len(source), stride):
            if total >= limit:
                return
            for text in objective.texts(source[index], f"{source.name}, row {index}"):
                total += len(text.encode())
                yield text
