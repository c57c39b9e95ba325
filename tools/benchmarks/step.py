"""The train step beside transformers + PEFT and beside the machine's own limit.

Both sides start from the same weights, read the same tokens and use the same optimizer; their first
three losses must agree before anything is timed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from tools.benchmarks import harness
from tools.benchmarks.shapes import SHAPES

METHODS, DTYPES = ("full", "lora"), ("float32", "bfloat16")
# Largest difference between the two sides' losses, relative, by type.
AGREEMENT = {"float32": 1e-3, "bfloat16": 2e-2}
SHARED_PARAMETERS = 5e8  # over this, weights are not handed over and losses are only printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--rounds", type=int, default=5, help="turns that everyone takes")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a turn at least")
    parser.add_argument("--no-peer", action="store_true", help="Graft alone: needs no torch")
    parser.add_argument("--compile", action="store_true", help="the peer under torch.compile")


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    shape = SHAPES[arguments.shape]
    results: dict[str, Any] = {"shape": arguments.shape, **harness.machine()}
    print(f"{arguments.shape}: {shape.rows} rows of {shape.length} tokens, {shape.model}")
    for method in arguments.methods:
        results |= _method(arguments, method)
    first = f"{arguments.methods[0]}.{arguments.dtypes[0]}.utilisation"
    results["utilisation"] = results[first]
    return results


def _method(arguments: argparse.Namespace, method: str) -> dict[str, Any]:
    """One method in every type, everyone interleaved."""
    shape = SHAPES[arguments.shape]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        modules: dict[str, tuple[str, dict[str, Any]]] = {}
        for dtype in arguments.dtypes:
            settings = {"shape": arguments.shape, "method": method, "dtype": dtype}
            if not arguments.no_peer and _parameters(shape.model) < SHARED_PARAMETERS:
                settings["weights"] = str(Path(folder) / f"{dtype}.npz")
            modules[f"peak {dtype}"] = ("tools.benchmarks.matmul_peak", settings)
            modules[f"graft {dtype}"] = ("tools.benchmarks.graft_step", settings)
            if not arguments.no_peer:
                peer = settings | {"compile": arguments.compile}
                modules[f"peer {dtype}"] = ("tools.benchmarks.torch_step", peer)
        with harness.contenders(modules) as ready:
            info = {contender.name: contender.info for contender in ready}
            if not arguments.no_peer and "weights" in settings:
                for dtype in arguments.dtypes:
                    _check_same(info[f"graft {dtype}"], info[f"peer {dtype}"], dtype)
            times = harness.take_turns(ready, arguments.rounds, arguments.seconds)
            memory = {
                contender.name: contender.peak_memory()
                for contender in ready
                if not contender.name.startswith("peak")
            }
    for dtype in arguments.dtypes:
        mine, limit = times[f"graft {dtype}"], times[f"peak {dtype}"]
        facts = info[f"graft {dtype}"]
        flops = facts["flops_per_token"] * shape.tokens
        peak = harness.rate(1e12, limit)
        rate = harness.rate(shape.tokens, mine)
        used = harness.Spread.of(
            [harness.rate(flops, [a]).middle / harness.rate(1e12, [b]).middle
             for a, b in zip(mine, limit, strict=True)]
        )  # fmt: skip
        key = f"{method}.{dtype}"
        results |= rate.keys(f"{key}.graft.tokens_per_second") | used.keys(f"{key}.utilisation")
        results |= {
            f"{key}.peak_flops_per_second": peak.middle,
            f"{key}.graft.program_bytes": facts["argument_bytes"] + facts["temporary_bytes"],
            f"{key}.graft.peak_memory_bytes": memory[f"graft {dtype}"],
            f"{key}.graft.compile_seconds": facts["compile_seconds"],
            "jax": facts["jax"],
            "device": info[f"peak {dtype}"]["device"],
        }
        print(f"\n{method} {dtype}: matrix products reach {peak.middle / 1e9:,.0f} GFLOP/s")
        print(f"  Graft  {rate:,.0f} tokens/s, {used:.1%} of that, "
              f"{memory[f'graft {dtype}'] / 2**30:.2f} GiB")  # fmt: skip
        if arguments.no_peer:
            continue
        theirs = times[f"peer {dtype}"]
        rate = harness.rate(shape.tokens, theirs)
        faster = harness.ratio(mine, theirs)
        results |= rate.keys(f"{key}.peer.tokens_per_second") | faster.keys(f"{key}.ratio")
        results[f"{key}.peer.peak_memory_bytes"] = memory[f"peer {dtype}"]
        results |= {name: info[f"peer {dtype}"][name] for name in ("torch", "transformers")}
        print(f"  peer   {rate:,.0f} tokens/s, {memory[f'peer {dtype}'] / 2**30:.2f} GiB")
        print(f"  Graft is {faster:.2f} times as fast")
        if dtype == arguments.dtypes[0]:
            results |= faster.keys(f"{method}.ratio")
            # by how much the peer would have to speed up if Graft did nothing but products
            bound = harness.Spread.of(
                [harness.rate(1e12, [a]).middle / harness.rate(flops, [b]).middle
                 for a, b in zip(limit, theirs, strict=True)]
            )  # fmt: skip
            results |= bound.keys(f"{method}.ratio_at_peak")
            print(f"  at the machine's limit it would be {bound:.2f} times")
    return results


def _parameters(model: dict[str, Any]) -> float:
    layer = model["width"] * (2 * model["width"] + 3 * model["hidden"])
    return model["layers"] * layer + model["vocabulary"] * model["width"]


def _check_same(graft: dict[str, Any], peer: dict[str, Any], dtype: str) -> None:
    """Refuses to time two things that do not compute the same."""
    pairs = list(zip(graft["losses"], peer["losses"], strict=True))
    text = ", ".join(f"{a:.4f} and {b:.4f}" for a, b in pairs)
    print(f"losses of the first steps, Graft's and the peer's, {dtype}: {text}")
    if any(abs(a - b) > AGREEMENT[dtype] * abs(b) for a, b in pairs):
        raise RuntimeError(f"{dtype}: the two sides do not compute the same ({text})")
