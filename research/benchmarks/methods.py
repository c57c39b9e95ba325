"""Tuning methods beside full tuning: time, memory, optimizer state, FLOPs, and the closed forms.

The first table is read off compiled programs and needs no clock: FLOPs of some layers in a row (XLA
counts a scan's body once) beside the closed form, which shows that nothing is computed for frozen
leaves; memory of all layers in one scan with `remat: full`. The second is time, everyone in turn:
how many times as fast as full tuning, beside what the closed form says. That is matrix products at
the rate of the fastest one, and the update's bytes at the rate of a pass over memory, both measured
in the same round; what else a step does is in neither.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from research import sharding
from research.benchmarks import graft_step, harness
from research.benchmarks.shapes import SHAPES
from research.models.layers import Linear
from research.models.quantized_matrix import QuantizedMatrix
from research.models.sites import places
from research.runtime import memory
from research.training import program

MIB, GIB = 2**20, 2**30
COUNTED_LAYERS = 4  # whose FLOPs XLA counts
# the numbers of ProgramFacts whose share of the other's is given
SHARED = ("counted_flops.closed_form", "counted_flops", "flops", "memory", "optimizer_bytes")


@dataclasses.dataclass(frozen=True)
class Entry:
    """Something to measure.

    Attributes:
      settings: graft_step's, beside the shape and type; a quantised base is one more of them.
      beside: the entry that it is compared to.
    """

    settings: Mapping[str, Any]
    beside: str = "full"


EIGHT_ROWS = {"rows": 8}  # one for each adapter of the bank
REFERENCES = {
    "full": Entry({"method": "full"}),
    "lora-8-rows": Entry({"method": "lora"} | EIGHT_ROWS),
}
SINGLE = [name for name in graft_step.METHODS if name not in ("full", "bank8")]
ENTRIES = {name: Entry({"method": name}) for name in SINGLE} | {
    "bank8": Entry({"method": "bank8"} | EIGHT_ROWS, "lora-8-rows"),
    "qlora-nf4": Entry({"method": "lora", "stored": "nf4"}),
    "qlora-int8": Entry({"method": "lora", "stored": "int8"}),
}
TIME_HEADER = (
    ("", "", "seconds", "other's", "times as fast", "in closed form", "off by", "the"),
    ("", "remat", "a step", "seconds", "as the other", "", "", "other"),
)
TIME_WIDTHS = (11, 5, 7, 7, 20, 20, 7, 11)
# The project's goals for SmolLM2-135M: (number, least, most).
MARKS = (
    ("lora.ratio", 1.42, None),
    ("lora.remat.ratio", 1.29, None),
    *((f"{name}.ratio.to_analytic", 0.9, 1.1) for name in ENTRIES),
    ("lora.remat.ratio.to_analytic", 0.9, 1.1),
    ("lora.memory_share", None, 0.55),
    ("bank8.ratio_to_lora", None, 1.25),
    ("qlora-nf4.bytes_per_quantised_parameter", None, 0.53),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--methods", nargs="+", choices=ENTRIES, default=list(ENTRIES))
    parser.add_argument(
        "--remat",
        nargs="*",
        choices=SINGLE,
        default=["lora"],
        metavar="METHOD",
        help="those of --methods that are timed with remat=full too",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--rounds", type=harness.positive, default=5, help="turns that everyone takes"
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a turn at least")
    parser.add_argument(
        "--together", type=harness.positive, default=2, help="methods beside full at a time"
    )
    parser.add_argument("--no-time", action="store_true", help="the first table alone")


def main(arguments: argparse.Namespace) -> harness.Results:
    shape = SHAPES[arguments.shape]
    results: harness.Results = {
        "shape": arguments.shape,
        "dtype": arguments.dtype,
        **harness.machine(),
    }
    print(f"{arguments.shape}: {shape.rows} rows of {shape.length} tokens, {shape.model}")
    results |= _programs(arguments)
    if not arguments.no_time:
        results |= _times(arguments)
    if arguments.shape == "smollm2":
        _print_marks(results)
    return results


# --- what compiled programs say -------------------------------------------------------------


def _programs(arguments: argparse.Namespace) -> harness.Results:
    entries = {name: ENTRIES[name] for name in arguments.methods}
    names = dict.fromkeys(entry.beside for entry in entries.values()) | entries
    settings = {name: dict(_entry(name).settings) | _common(arguments) for name in names}
    with harness.contenders({"compiled programs": (__spec__.name, settings)}) as ready:
        facts = {name: ProgramFacts(**fields) for name, fields in ready[0].info.items()}
    print()
    results: harness.Results = {}
    rows = [
        ["", "trained", "optimizer", "GFLOP", f"{COUNTED_LAYERS} layers", "XLA /", "GiB,"],
        ["", "parameters", "MiB", "a step", "GFLOP", "closed", "remat=full"],
    ]
    rows[0] += ["of other's:", "FLOPs", "by XLA", "memory", "optimizer", "the"]
    rows[1] += ["FLOPs", f"{COUNTED_LAYERS} layers", "the same", "", "state", "other"]
    for name in names:
        own, other = facts[name], _entry(name).beside
        numbers, other_numbers = own.numbers(), facts[other].numbers()
        share = {key: numbers[key] / other_numbers[key] for key in SHARED}
        results |= {f"{name}.{key}": value for key, value in numbers.items()}
        results |= {f"{name}.{key}_share": value for key, value in share.items()}
        rows.append(
            [
                name,
                f"{own.trainable_parameters:,}",
                f"{own.optimizer_bytes / MIB:,.2f}",
                f"{own.flops / 1e9:,.1f}",
                f"{own.closed_form_flops / 1e9:,.1f}",
                f"{own.counted_flops / own.closed_form_flops:.3f}",
                f"{own.peak_bytes / GIB:.2f}",
                f"{share['flops']:.3f}",
                f"{share['counted_flops.closed_form']:.3f}",
                f"{share['counted_flops']:.3f}",
                f"{share['memory']:.1%}",
                f"{share['optimizer_bytes']:.2%}",
                other,
            ]
        )
    _print_table(rows)
    for name, own in facts.items():
        if each := own.bytes_per_quantized_parameter:
            size = own.base_bytes / MIB
            print(f"{name}: {each:.4f} bytes a quantised parameter, the whole base {size:,.1f} MiB")
    return results


@dataclasses.dataclass(frozen=True)
class ProgramFacts:
    """Facts about an entry's compiled programs.

    Attributes:
      flops: of a step, in closed form.
      closed_form_flops: of a step of `COUNTED_LAYERS` layers, in closed form.
      counted_flops: the same as XLA counts them.
      peak_bytes: of all layers in one scan with `remat: full`; its parts are apart.
    """

    base_bytes: int
    bytes_per_quantized_parameter: float | None
    trainable_parameters: int
    optimizer_bytes: int
    flops: float
    closed_form_flops: float
    counted_flops: float
    peak_bytes: int
    argument_bytes: int
    temporary_bytes: int

    def numbers(self) -> dict[str, Any]:
        """The facts by the names that results have."""
        return {
            "base_bytes": self.base_bytes,
            "bytes_per_quantised_parameter": self.bytes_per_quantized_parameter,
            "trainable_parameters": self.trainable_parameters,
            "optimizer_bytes": self.optimizer_bytes,
            "flops": self.flops,
            "counted_flops.closed_form": self.closed_form_flops,
            "counted_flops": self.counted_flops,
            "memory": self.peak_bytes,
            "memory.arguments": self.argument_bytes,
            "memory.temporaries": self.temporary_bytes,
        }


def prepare(settings: Mapping[str, Any]):
    """A contender that only compiles; `info` holds the `ProgramFacts` of each entry."""
    info = {}
    for name, each in settings.items():
        print(f" {name}", end="", file=sys.stderr, flush=True)
        info[name] = dataclasses.asdict(_facts(each))
    return info, lambda: 0.0


def _facts(settings: dict[str, Any]) -> ProgramFacts:
    shape = graft_step.shape_of(settings)
    layers = min(COUNTED_LAYERS, shape.llama.layers)
    few_layers = {"layers": layers, "max_scan_layers": 1, "remat": "none"}
    few_plan, few_step = _compile(settings | {"model": few_layers, "chunk": shape.length})
    plan, step = _compile(settings | {"model": {"max_scan_layers": 0, "remat": "full"}})
    step_memory = memory.StepMemory.of(step)
    base = plan.base_shapes
    linears = [module for _, module in places(base, Linear)]
    kernels = [m.kernel for m in linears if isinstance(m.kernel, QuantizedMatrix)]
    parameters = sum(math.prod(kernel.shape) for kernel in kernels)
    return ProgramFacts(
        base_bytes=_bytes(base),
        bytes_per_quantized_parameter=_bytes(kernels) / parameters if parameters else None,
        trainable_parameters=plan.trainable_parameters,
        optimizer_bytes=graft_step.optimizer_bytes(plan),
        flops=plan.flops_per_token * shape.tokens,
        closed_form_flops=few_plan.flops_per_token * shape.tokens,
        counted_flops=few_step.cost_analysis()["flops"],
        peak_bytes=step_memory.peak,
        argument_bytes=step_memory.arguments,
        temporary_bytes=step_memory.temporaries,
    )


def _bytes(arrays: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))


def _compile(settings: Mapping[str, Any]) -> tuple[program.Program, Any]:
    plan = program.make_program(graft_step.experiment(settings), None)
    with sharding.mesh_context(plan.mesh, plan.experiment.sharding_rules):
        return plan, plan.compile(graft_step.batch(settings))


# --- time -----------------------------------------------------------------------------------


def _times(arguments: argparse.Namespace) -> harness.Results:
    cases = [("none", name) for name in arguments.methods]
    cases += [("full", name) for name in arguments.methods if name in arguments.remat]
    groups = itertools.groupby(cases, key=lambda case: (case[0], ENTRIES[case[1]].beside))
    results: harness.Results = {}
    print()
    _print_table(TIME_HEADER, TIME_WIDTHS)
    for (remat, beside), members in groups:
        names = [name for _, name in members]
        # few at a time: too many models in memory leave no huge pages for their work
        for first in range(0, len(names), arguments.together):
            some = names[first : first + arguments.together]
            try:
                numbers, rows = _together(arguments, remat, beside, some)
            except RuntimeError as error:  # a group that does not fit takes no other with it
                print(f"{', '.join(some)}: no result: {error}", flush=True)
                results |= {f"{name}.error": str(error) for name in some}
                continue
            results |= numbers
            _print_table(rows, TIME_WIDTHS)
    return results


def _together(
    arguments: argparse.Namespace, remat: str, beside: str, names: Sequence[str]
) -> tuple[harness.Results, list[list[str]]]:
    """Some methods, what they are compared to, and the machine's limits, in turns: numbers, and
    lines of the table."""
    modules: dict[str, harness.Entrant] = {
        "limit": ("research.benchmarks.matmul_peak", {"dtype": arguments.dtype}),
        "memory": ("research.benchmarks.memory_rate", {}),
    }
    for name in (beside, *names):
        settings = dict(_entry(name).settings) | _common(arguments) | {"model": {"remat": remat}}
        modules[name] = ("research.benchmarks.graft_step", settings)
    with harness.contenders(modules) as ready:
        facts = {
            contender.name: graft_step.StepFacts(**contender.info)
            for contender in ready
            if contender.name in (beside, *names)
        }
        times = harness.take_turns(ready, arguments.rounds, arguments.seconds)
    tokens = SHAPES[arguments.shape].tokens
    limits = [
        [statistics.median(runs) for runs in each]
        for each in zip(times["limit"], times["memory"], strict=True)
    ]
    expected = {name: _expected_seconds(facts[name], tokens, limits) for name in (beside, *names)}
    results: harness.Results = {}
    rows = []
    for name in names:
        key = name if remat == "none" else f"{name}.remat"
        faster = harness.ratio(times[name], times[beside])
        analytic = harness.ratio(expected[name], expected[beside])
        off = faster.middle / analytic.middle
        seconds, other = (harness.Spread.of(_medians(times[one])) for one in (name, beside))
        results |= faster.to_results(f"{key}.ratio") | analytic.to_results(f"{key}.ratio.analytic")
        results |= seconds.to_results(f"{key}.seconds") | other.to_results(
            f"{key}.seconds_of_other"
        )
        results[f"{key}.ratio.to_analytic"] = off
        results[f"{key}.update_bytes"] = _update_bytes(facts[name])
        if beside != "full":
            results |= faster.inverse().to_results(f"{key}.ratio_to_{beside.partition('-')[0]}")
        rows.append(
            [
                name,
                remat,
                f"{seconds.middle:.3f}",
                f"{other.middle:.3f}",
                f"{faster:.3f}",
                f"{analytic:.3f}",
                f"{off - 1:+.1%}",
                beside,
            ]
        )
    return results, rows


def _expected_seconds(
    facts: graft_step.StepFacts, tokens: int, limits: Sequence[Sequence[float]]
) -> list[list[float]]:
    """Seconds of a step at the machine's limits, in each round: products, then the update.

    Args:
      limits: seconds for 10^12 FLOPs of products and for 10^9 bytes, by round.
    """
    flops = (facts.flops_per_token + facts.recomputed_flops_per_token) * tokens
    update_bytes = _update_bytes(facts)
    return [[flops / 1e12 * product + update_bytes / 1e9 * passing] for product, passing in limits]


def _update_bytes(facts: graft_step.StepFacts) -> int:
    """Bytes that clipping, the optimizer and the update read and write, as `train_step` is written.

    Arrays of the trained leaves: the norm reads gradients; the optimizer reads them and writes its
    steps; the check reads those; the update reads steps and weights and writes weights. Of the
    optimizer's state: read and written new, then old and new are read and one of them is kept.
    """
    return 7 * 4 * facts.trainable_parameters + 5 * facts.optimizer_bytes


def _medians(rounds: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.median(runs) for runs in rounds]


def _print_marks(results: Mapping[str, Any]) -> None:
    print("\nthe project's marks")
    for key, least, most in MARKS:
        if key in results:
            value = results[key]
            goal = " and ".join(
                f"{word} {limit}"
                for word, limit in (("at least", least), ("at most", most))
                if limit is not None
            )
            is_reached = (least is None or value >= least) and (most is None or value <= most)
            print(f"  {key:30} {value:6.3f}  {goal}: {'reached' if is_reached else 'missed'}")


def _print_table(rows: Sequence[Sequence[str]], widths: Sequence[int] = ()) -> None:
    widths = widths or [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]), flush=True)


def _entry(name: str) -> Entry:
    return (REFERENCES | ENTRIES)[name]


def _common(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"shape": arguments.shape, "dtype": arguments.dtype}
