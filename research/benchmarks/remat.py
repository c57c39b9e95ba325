"""Memory against time: the same step under each policy of rematerialisation.

Memory is what the compiled program needs, exact and known before it runs. Layers run in one scan
here, also on a CPU, where the policies save nothing in unrolled layers.
"""

from __future__ import annotations

import argparse
import typing

from research.benchmarks import graft_step, harness
from research.benchmarks.shapes import SHAPES
from research.models.config import Remat

MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="quickstart")
    parser.add_argument("--method", choices=graft_step.METHODS, default="full")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--rounds", type=harness.positive, default=3, help="turns that everyone takes"
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a turn at least")


def main(arguments: argparse.Namespace) -> harness.Results:
    shape = SHAPES[arguments.shape]
    settings = {name: getattr(arguments, name) for name in ("shape", "method", "dtype")}
    modules = {
        policy: (
            "research.benchmarks.graft_step",
            settings | {"model": {"remat": policy, "max_scan_layers": 0}},
        )
        for policy in typing.get_args(Remat)
    }
    results: harness.Results = {**settings, **harness.machine()}
    with harness.contenders(modules) as ready:
        times = harness.take_turns(ready, arguments.rounds, arguments.seconds)
    for contender in ready:
        policy, facts = contender.name, graft_step.StepFacts(**contender.info)
        rate = harness.rate(shape.tokens, times[policy])
        share = harness.ratio(times[policy], times["none"])
        print(
            f"remat {policy:10}{facts.argument_bytes / MIB:8,.1f} MiB arguments, "
            f"{facts.temporary_bytes / MIB:8,.1f} temporaries, {rate:,.0f} tokens/s, "
            f"{share:.2f} of none's"
        )
        results |= rate.to_results(f"{policy}.tokens_per_second") | share.to_results(
            f"{policy}.ratio"
        )
        results[f"{policy}.argument_bytes"] = facts.argument_bytes
        results[f"{policy}.temporary_bytes"] = facts.temporary_bytes
    return results
