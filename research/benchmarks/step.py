"""The train step beside transformers + PEFT and beside the machine's own limit.

Both sides start from the same weights, read the same tokens and use the same optimizer; their first
three losses must agree before anything is timed (not compared over two billion parameters).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from research.benchmarks import harness
from research.benchmarks.graft_step import StepFacts
from research.benchmarks.shapes import SHAPES
from research.models.config import ModelConfig
from research.training import cost

METHODS, DTYPES = ("full", "lora"), ("float32", "bfloat16")
# Largest difference between the two sides' losses, relative, by type.
AGREEMENT = {"float32": 1e-3, "bfloat16": 2e-2}
GIB = 2**30
SHARED_PARAMETERS = 2e9  # over this, weights are not handed over and losses are not compared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument(
        "--rounds", type=harness.positive, default=5, help="turns that everyone takes"
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a turn at least")
    parser.add_argument("--no-peer", action="store_true", help="Graft alone: needs no torch")
    parser.add_argument("--compile", action="store_true", help="the peer under torch.compile")


def main(arguments: argparse.Namespace) -> harness.Results:
    absent = [name for name in ("torch", "transformers", "peft") if not find_spec(name)]
    if absent and not arguments.no_peer:
        raise SystemExit(f"{absent[0]} is not there: run tools/setup interop, or give --no-peer")
    shape = SHAPES[arguments.shape]
    results: harness.Results = {"shape": arguments.shape, **harness.machine()}
    print(f"{arguments.shape}: {shape.rows} rows of {shape.length} tokens, {shape.model}")
    for method in arguments.methods:
        for dtype in arguments.dtypes:
            # one case at a time: too many models in memory leave no huge pages for their work
            try:
                results |= _case(arguments, method, dtype)
            except RuntimeError as error:  # a case that does not fit takes no other with it
                print(f"  no result: {error}", flush=True)
                results[f"{method}.{dtype}.error"] = str(error)
    first = f"{arguments.methods[0]}.{arguments.dtypes[0]}"
    if f"{first}.utilisation" in results:
        results["utilisation"] = results[f"{first}.utilisation"]
    return results


def _case(arguments: argparse.Namespace, method: str, dtype: str) -> harness.Results:
    """The machine's limit, Graft and the peer in turns: one method in one type."""
    shape, key = SHAPES[arguments.shape], f"{method}.{dtype}"
    settings: dict[str, Any] = {"shape": arguments.shape, "method": method, "dtype": dtype}
    modules = {"limit": ("research.benchmarks.matmul_peak", settings)}
    modules["graft"] = ("research.benchmarks.graft_step", settings)
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.no_peer:
            if cost.parameter_count(ModelConfig(**shape.model)) < SHARED_PARAMETERS:
                settings["weights"] = str(Path(folder) / "weights.npz")
            peer = settings | {"compile": arguments.compile}
            modules["peer"] = ("research.benchmarks.torch_step", peer)
        print(f"\n{method} {dtype}", flush=True)
        with harness.contenders(modules) as ready:
            info = {contender.name: contender.info for contender in ready}
            if "weights" in settings:
                Path(settings["weights"]).unlink()
                check_same(info["graft"]["losses"], info["peer"]["losses"], dtype)
            elif "peer" in info:
                print("  too large to share weights: losses are not compared", flush=True)
            times = harness.take_turns(ready, arguments.rounds, arguments.seconds)
            memory = {c.name: c.peak_memory() for c in ready if c.name != "limit"}
    facts = StepFacts(**info["graft"])
    flops = facts.flops_per_token * shape.tokens
    peak = harness.rate(1e12, times["limit"])
    rate = harness.rate(shape.tokens, times["graft"])
    utilization = _share(flops, times["graft"], times["limit"])
    print(f"  limit  {peak / 1e9:,.0f} GFLOP/s in matrix products")
    print(
        f"  Graft  {rate:,.0f} tokens/s, {utilization:.1%} of the limit, "
        f"{memory['graft'] / GIB:.2f} GiB"
    )
    results = {
        **peak.to_results(f"{key}.peak_flops_per_second"),
        **rate.to_results(f"{key}.graft.tokens_per_second"),
        **utilization.to_results(f"{key}.utilisation"),
        f"{key}.graft.program_bytes": facts.argument_bytes + facts.temporary_bytes,
        f"{key}.graft.peak_memory_bytes": memory["graft"],
        f"{key}.graft.compile_seconds": facts.compile_seconds,
        "jax": facts.jax,
        "device": info["limit"]["device"],
    }
    if arguments.no_peer:
        return results
    rate = harness.rate(shape.tokens, times["peer"])
    faster = harness.ratio(times["graft"], times["peer"])
    # what a program of nothing but products, at the limit, would reach beside the peer
    ratio_at_limit = _share(flops, times["peer"], times["limit"]).inverse()
    print(f"  peer   {rate:,.0f} tokens/s, {memory['peer'] / GIB:.2f} GiB")
    print(
        f"  Graft is {faster:.2f} times as fast; at the limit it would be {ratio_at_limit:.2f}",
        flush=True,
    )
    results |= rate.to_results(f"{key}.peer.tokens_per_second") | faster.to_results(f"{key}.ratio")
    results |= ratio_at_limit.to_results(f"{key}.ratio_at_limit")
    results[f"{key}.peer.peak_memory_bytes"] = memory["peer"]
    results |= {name: info["peer"][name] for name in ("torch", "transformers")}
    if dtype == arguments.dtypes[0]:
        results |= faster.to_results(f"{method}.ratio")
    return results


def _share(flops: float, of: list[list[float]], limit: list[list[float]]) -> harness.Spread:
    """The share of the limit that a step of so many FLOPs reaches, round by round."""
    return harness.ratio([[flops / 1e12 * s for s in runs] for runs in limit], of).inverse()


def check_same(graft: Sequence[float], peer: Sequence[float], dtype: str) -> None:
    """Refuses to time two sides whose first losses differ.

    Raises:
      RuntimeError: giving the losses.
    """
    pairs = list(zip(graft, peer, strict=True))
    text = ", ".join(f"{a:.4f} and {b:.4f}" for a, b in pairs)
    print(f"  losses of the first steps, Graft's and the peer's: {text}", flush=True)
    if any(abs(a - b) > AGREEMENT[dtype] * abs(b) for a, b in pairs):
        raise RuntimeError(f"{dtype}: the two sides do not compute the same ({text})")
