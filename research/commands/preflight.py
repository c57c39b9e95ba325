"""Examines what a run needs and what it costs, before there is a device to run it on.

    graft preflight --config configs/pretrain/llama3_8b.py --topology v5p:4x4x4
    graft preflight --config FILE --topology v5e:16x16 --slices 2 --config.steps=5000
    graft preflight --config FILE --topology v5e:2x4 --sequences-per-chip 1 --json report.json
    graft preflight --config FILE --topology all
    graft preflight --config FILE --topology v5e:1x1 --together 16
        as many trials that differ in numbers alone, mapped into one program on one frozen base
    graft preflight --config configs/finetune/smollm2_sft_dpo.py --topology v5e:1x1
        a config in phases: each of them, or --phase NAME alone

It compiles the run's own train step with the real TPU compiler (`tools/setup preflight`), for
devices that need not be there: so "fits" is what that compiler says. The text and the weights need
not be there either, if the config gives `model`. Speed is a bound: work over what the chips can do
at most, whichever of products, memory and network takes longest. Where it does not fit, or the
devices cannot share the batch, the nearest configs that do are looked for (a compilation each;
--tries 0 does not). Exits with 3 if it does not fit, with 1 if something is wrong with what it was
given; `all` exits with 3 if any does not fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.runtime.environment import ROOT
from research.runtime.programs import run_program
from research.runtime.terminal import show

if TYPE_CHECKING:
    from research.experiment import Experiment
    from research.phases.phased import PhasedExperiment
    from research.preflight.examine import Prices
    from research.preflight.report import Alternative
    from research.runtime.accelerators import Topology

PRICES = ROOT / "configs" / "prices.json"


def main(argv: Sequence[str] | None = None) -> None:
    from research.config import cli

    parser = cli.program_parser("preflight", __doc__)
    parser.add_argument(
        "--topology",
        required=True,
        metavar="VERSION:SHAPE",
        help="chips of one slice, such as v5e:16x16 or v5p:4x4x4; `all` makes a table",
    )
    parser.add_argument("--slices", type=_count, default=1, metavar="N", help="so many such slices")
    parser.add_argument(
        "--sequences-per-chip",
        type=_count,
        metavar="N",
        help="sets data.batch_size to N for each chip, in whole rows for each device",
    )
    parser.add_argument(
        "--together", type=_count, metavar="N", help="N trials mapped into one program"
    )
    parser.add_argument("--phase", metavar="NAME", help="of a config in phases: this one alone")
    parser.add_argument("--prices", type=cli.on_disk, default=PRICES, metavar="FILE")
    parser.add_argument(
        "--tries", type=int, default=6, metavar="N", help="most compilations to find what fits"
    )
    parser.add_argument("--json", type=cli.on_disk, metavar="FILE", help="write every number there")
    arguments = cli.parse(parser, list(sys.argv[1:] if argv is None else argv))
    with cli.clear_errors():
        fits = _examine(arguments)
    raise SystemExit(0 if fits else 3)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number from 1")
    return int(text)


def _examine(arguments: argparse.Namespace) -> bool:
    """Prints and writes reports; whether everything fits."""
    from configs import presets
    from research.preflight import examine

    is_table = arguments.topology == "all"
    if arguments.together and (is_table or arguments.slices > 1):
        raise ValueError("--together is for one topology of one slice")
    if not is_table:
        examine.prepare_environment(presets.flags(arguments.topology))

    from research.config import cli, schema
    from research.phases.phased import PhasedExperiment
    from research.preflight.describe import describe
    from research.runtime import accelerators

    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("the TPU compiler is not there: run tools/setup preflight")
    if arguments.json and not arguments.json.parent.is_dir():
        raise ValueError(f"--json {arguments.json}: there is no folder {arguments.json.parent}")
    prices = schema.load_json(examine.Prices, arguments.prices)
    phased = cli.load(PhasedExperiment, arguments.config, arguments.overrides)
    phases = _find_phases(phased, arguments.phase)
    with_rollouts = {phase.name for phase in phased.phases if phase.rollouts}
    if is_table:
        if len(phases) > 1:
            raise ValueError(f"--topology all is for one phase: --phase {', '.join(phases)}")
        return _examine_all(arguments)
    topology = accelerators.get_topology(arguments.topology, arguments.slices)
    changes = []
    if arguments.sequences_per_chip:
        changes = [f"data.batch_size={topology.rows(arguments.sequences_per_chip)}"]
    if arguments.together:
        from research.preflight.together import examine_together

        if len(phases) > 1:
            raise ValueError(f"--together is for one phase: --phase {', '.join(phases)}")
        (experiment,) = phases.values()
        group = examine_together(cli.override(experiment, changes), topology, arguments.together)
        show(group.describe(), flush=True)
        _write(arguments, dataclasses.asdict(group) | {"fits": group.fits, "gain": group.gain})
        return group.fits
    contents, fits = {}, True
    for name, experiment in phases.items():
        if name:
            show(f"\nphase {name}", flush=True)
        report = examine.examine(cli.override(experiment, changes), topology, prices)
        show(describe(report), flush=True)
        if name in with_rollouts:
            show(f"{'':10} without its rollouts: answers that its start gives on the same chips")
        contents[name], fits = report.to_json(), fits and report.fits
        _write(arguments, contents if name else contents[name])
        if not report.fits and arguments.tries > 0:
            fitting = _search(experiment, changes, topology, prices, arguments.tries)
            contents[name] = dataclasses.replace(report, alternatives=fitting).to_json()
            _write(arguments, contents if name else contents[name])
    return fits


def _find_phases(phased: PhasedExperiment, name: str | None) -> dict[str, Experiment]:
    """The experiment, under "", or those of its phases by name: all, or the one of this name.

    Raises:
      ValueError: there is no such phase.
    """
    from research.config.suggestions import suggestion

    phases = phased.planned()
    if name is None:
        return phases or {"": phased.common}
    if name not in phases:
        there = f"; there are {', '.join(phases)}" if phases else ": the config has no phases"
        raise ValueError(f"--phase {name}: no such phase{suggestion(name, phases) or there}")
    return {name: phases[name]}


def _write(arguments: argparse.Namespace, content: Any) -> None:
    if arguments.json:
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _examine_all(arguments: argparse.Namespace) -> bool:
    """One report for each version, in processes of their own, as the compiler reads its flags once
    in one; each result is printed and written at once."""
    from research.preflight.describe import table
    from research.runtime import accelerators

    rows: list[dict[str, Any]] = []
    try:
        for topology in accelerators.EXAMPLE_TOPOLOGIES:
            rows.append(_examine_in_process(arguments, topology))
            _write(arguments, rows)
    finally:
        if rows:
            show(table(rows), flush=True)
    return all(row["fits"] for row in rows)


def _examine_in_process(arguments: argparse.Namespace, topology: str) -> dict[str, Any]:
    """The JSON of one topology's report; where there is none, of why."""
    from research.preflight.report import MemoryFit, Report

    flags = ["--config", arguments.config, "--topology", topology, "--tries", "0"]
    flags += ["--slices", str(arguments.slices), "--prices", str(arguments.prices)]
    if arguments.sequences_per_chip:
        flags += ["--sequences-per-chip", str(arguments.sequences_per_chip)]
    flags += ["--phase", arguments.phase] if arguments.phase else []
    flags += [f"--config.{override}" for override in arguments.overrides]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        command = [sys.executable, "-m", "research.cli", "preflight", *flags, "--json", str(file)]
        process = run_program(command, stderr=subprocess.PIPE, text=True)
        if process.returncode in (0, 3):  # 3: it does not fit, which is a result
            show(flush=True)
            return json.loads(file.read_text(encoding="utf-8"))
    why = (process.stderr.strip() or f"ended with {process.returncode}").splitlines()[-1]
    why = why.removeprefix("error: ")
    show(f"{'NO':10} {topology}: {why}\n", flush=True)
    return Report(topology, arguments.slices, MemoryFit.refused(why)).to_json()


def _search(
    experiment: Experiment, overrides: list[str], topology: Topology, prices: Prices, tries: int
) -> list[Alternative]:
    """Prints the nearest configs as they are compiled; those that fit."""
    from research.config import cli
    from research.preflight import alternatives

    def load(changes: Sequence[str]) -> Experiment:
        return cli.override(experiment, [*overrides, *changes])

    show("\nlooking for the nearest configs that fit", flush=True)
    fitting = []
    for alternative in alternatives.nearest(load, topology, prices, tries):
        flags = " ".join(f"--config.{change}" for change in alternative.changes)
        peak, estimate = alternative.report.memory.peak_gib, alternative.report.estimate
        if alternative.report.fits:
            assert estimate is not None
            fitting.append(alternative)
            show(
                f"{'fits':10} {flags}\n{'':10} {peak:.2f} GiB, at best "
                f"{estimate.tokens_per_second:,.0f} tokens/s",
                flush=True,
            )
        else:
            size = "" if peak is None else f" {peak:.2f} GiB:"
            show(f"{'no':10}{size} {flags}", flush=True)
    if not fitting:
        show("none found: take more chips, fewer rows (data.batch_size), or a smaller model")
    return fitting
