"""Says what a run needs and what it costs, before there is a device to run it on.

    graft preflight --config configs/pretrain/llama3_8b.py --topology v5p:4x4x4
    graft preflight --config FILE --topology v5e:16x16 --slices 2 --config.steps=5000
    graft preflight --config FILE --topology v5e:2x4 --sequences-per-chip 1 --json report.json
    graft preflight --config FILE --topology all

It compiles the run's own train step with the real TPU compiler (`tools/setup preflight`), for
devices that need not be there: so "fits" is what that compiler says. The text and the weights need
not be there either, if the config gives `model`. Speed is a bound: work over what the chips can do
at most, whichever of products, memory and network takes longest. Where it does not fit, or the
devices cannot share the batch, the nearest configs that do are looked for (a compilation each;
--tries 0 does not). Exits with 3 if it does not fit, with 1 if something is wrong with what it was
given; `all` exits with 3 if any does not fit.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from research.runtime.environment import ROOT

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


def _examine(arguments) -> bool:
    from configs import presets
    from research.preflight import examine

    every = arguments.topology == "all"
    if not every:
        examine.prepare_environment(presets.flags(arguments.topology))

    from research.config import cli, schema
    from research.experiment import Experiment
    from research.runtime import accelerators

    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("the TPU compiler is not there: run tools/setup preflight")
    if arguments.json and not arguments.json.parent.is_dir():
        raise ValueError(f"--json {arguments.json}: there is no folder {arguments.json.parent}")
    prices = schema.load_json(examine.Prices, arguments.prices)
    if every:
        cli.load(Experiment, arguments.config, arguments.overrides)  # a wrong key is said once
        return _every(arguments)
    topology = accelerators.topology(arguments.topology, arguments.slices)
    overrides = list(arguments.overrides)
    if arguments.sequences_per_chip:
        overrides.append(f"data.batch_size={topology.rows(arguments.sequences_per_chip)}")
    experiment = cli.load(Experiment, arguments.config, overrides)
    report = examine.examine(experiment, topology, prices)
    print(examine.describe(report), flush=True)
    _write(arguments, report)
    if not report["fits"] and arguments.tries > 0:
        _search(arguments, overrides, topology, prices, report)
        _write(arguments, report)
    return report["fits"]


def _write(arguments, found) -> None:
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _every(arguments) -> bool:
    """A process for each version, as the compiler reads its flags once in one; what is found is
    printed and written at once."""
    from research.preflight import examine
    from research.runtime import accelerators

    reports = []
    try:
        for name in accelerators.EXAMPLES:
            reports.append(_in_process(arguments, name))
            _write(arguments, reports)
    finally:
        if reports:
            print(examine.table(reports), flush=True)
    return all(report["fits"] for report in reports)


def _in_process(arguments, topology: str) -> dict:
    from research.preflight import examine

    given = ["--config", arguments.config, "--topology", topology, "--tries", "0"]
    given += ["--slices", str(arguments.slices), "--prices", str(arguments.prices)]
    if arguments.sequences_per_chip:
        given += ["--sequences-per-chip", str(arguments.sequences_per_chip)]
    given += [f"--config.{override}" for override in arguments.overrides]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        words = [sys.executable, "-m", "research.cli", "preflight", *given, "--json", str(file)]
        done = subprocess.run(words, stderr=subprocess.PIPE, text=True)
        if done.returncode in (0, 3):  # 3: it does not fit, which is a result
            print(flush=True)
            return json.loads(file.read_text(encoding="utf-8"))
    why = (done.stderr.strip() or f"ended with {done.returncode}").splitlines()[-1]
    why = why.removeprefix("error: ")
    print(f"{'NO':10} {topology}: {why}\n", flush=True)
    return examine.refused(topology, arguments.slices, why)


def _search(arguments, overrides, topology, prices, report) -> None:
    from research.preflight import alternatives

    print("\nlooking for the nearest configs that fit", flush=True)
    fitting = report["alternatives"] = []
    given = (arguments.config, overrides, topology, prices, arguments.tries)
    for changes, found in alternatives.nearest(*given):
        flags = " ".join(f"--config.{change}" for change in changes)
        if found["fits"]:
            fitting.append({"changes": changes} | found)
            print(
                f"{'fits':10} {flags}\n{'':10} {found['peak_gib']:.2f} GiB, at best "
                f"{found['tokens_per_second']:,.0f} tokens/s",
                flush=True,
            )
        else:
            peak = "" if found["peak_gib"] is None else f" {found['peak_gib']:.2f} GiB:"
            print(f"{'no':10}{peak} {flags}", flush=True)
    if not fitting:
        print("none found: take more chips, fewer rows (data.batch_size), or a smaller model")
