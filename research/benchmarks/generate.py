"""Answers beside transformers' `generate`, and beside the bytes that a token must read.

Both sides have the same weights and prompts and take the likeliest token; in float32 their first
tokens must be the same before anything is timed. `--topology` compiles the step of one token for
chips that need not be there, and says how long the bytes that it must read take them, and how many
bytes the program moves. `--schema`, with a run whose tokenizer it is asked in, measures what a
constraint adds to a step, beside answers without it in the same process.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from research.benchmarks import harness
from research.benchmarks.shapes import SHAPES

DTYPES = ("float32", "bfloat16")
# Tokens of each answer that must be the same on both sides, in float32: later ones may part where
# two tokens are as likely but for rounding.
SAME_TOKENS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--rows", nargs="+", type=harness.positive, default=[1, 16])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--prompt-tokens", type=harness.positive, default=64)
    parser.add_argument("--new-tokens", type=harness.positive, default=64)
    parser.add_argument(
        "--rounds", type=harness.positive, default=3, help="turns that everyone takes"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a turn at least")
    parser.add_argument("--no-peer", action="store_true", help="Graft alone: needs no torch")
    parser.add_argument("--run", metavar="DIR", help="with --schema: the run that answers")
    parser.add_argument(
        "--schema",
        metavar="FILE",
        help="only measure what its answers of this schema add to a step",
    )
    parser.add_argument(
        "--topology",
        nargs="+",
        default=[],
        metavar="NAME",
        help="only compile, for one chip of these (v5e, v6e): needs tools/setup preflight",
    )


def main(arguments: argparse.Namespace) -> harness.Results:
    if arguments.topology:
        from research.benchmarks import decode_roofline

        return decode_roofline.measure(arguments)
    if arguments.schema or arguments.run:
        from research.benchmarks import constraint_overhead

        if not (arguments.schema and arguments.run):
            raise ValueError("--schema FILE and --run DIR go together")
        return constraint_overhead.measure(arguments)
    absent = [name for name in ("torch", "transformers") if not find_spec(name)]
    if absent and not arguments.no_peer:
        raise SystemExit(f"{absent[0]} is not there: run tools/setup interop, or give --no-peer")
    results: harness.Results = {"shape": arguments.shape, **harness.machine()}
    print(f"{arguments.shape}: {arguments.prompt_tokens} + {arguments.new_tokens} tokens a row")
    for dtype in arguments.dtypes:
        for rows in arguments.rows:
            results |= _case(arguments, dtype, rows)
    return results


def _case(arguments: argparse.Namespace, dtype: str, rows: int) -> harness.Results:
    """Both sides in turns: so many rows in one type."""
    key = f"{dtype}.{rows}"
    settings: dict[str, Any] = {
        "shape": arguments.shape,
        "dtype": dtype,
        "rows": rows,
        "prompt_tokens": arguments.prompt_tokens,
        "new_tokens": arguments.new_tokens,
    }
    modules = {
        "memory": ("research.benchmarks.memory_rate", {}),
        "graft": ("research.benchmarks.graft_generate", settings),
    }
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.no_peer:
            settings["weights"] = str(Path(folder) / "weights.npz")
            modules["peer"] = ("research.benchmarks.torch_generate", settings)
        print(f"\n{dtype}, {rows} rows", flush=True)
        with harness.contenders(modules) as ready:
            info = {contender.name: contender.info for contender in ready}
            if "peer" in info:
                _check_same(info["graft"]["answers"], info["peer"]["answers"], dtype)
            times = harness.take_turns(ready, arguments.rounds, arguments.seconds)
    tokens = rows * arguments.new_tokens
    rate = harness.rate(tokens, times["graft"])
    # every token of a row reads all weights once
    floor = info["graft"]["weight_bytes"] * arguments.new_tokens / 1e9
    least = [[seconds * floor for seconds in runs] for runs in times["memory"]]
    share = harness.ratio(times["graft"], least)
    print(f"  Graft  {rate:,.0f} tokens/s, {share:.1%} of what reading the weights allows")
    results = rate.to_results(f"{key}.graft.tokens_per_second")
    results |= share.to_results(f"{key}.share_of_memory_rate")
    results[f"{key}.graft.first_seconds"] = info["graft"]["first_seconds"]
    if "peer" in info:
        rate = harness.rate(tokens, times["peer"])
        faster = harness.ratio(times["graft"], times["peer"])
        print(f"  peer   {rate:,.0f} tokens/s")
        print(f"  Graft is {faster:.2f} times as fast", flush=True)
        results |= rate.to_results(f"{key}.peer.tokens_per_second")
        results |= faster.to_results(f"{key}.ratio")
        results |= {name: info["peer"][name] for name in ("torch", "transformers")}
    return results


def _check_same(graft: list[list[int]], peer: list[list[int]], dtype: str) -> None:
    """Says how far the sides' answers are the same.

    Raises:
      RuntimeError: in float32, if their first tokens are not.
    """
    pairs = [
        (a, b)
        for one, other in zip(graft, peer, strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    share = sum(a == b for a, b in pairs) / len(pairs)
    print(f"  {share:.0%} of the tokens are the same on both sides", flush=True)
    starts = [[row[:SAME_TOKENS] for row in side] for side in (graft, peer)]
    if dtype == "float32" and starts[0] != starts[1]:
        raise RuntimeError(f"{dtype}: the two sides do not say the same ({starts})")
