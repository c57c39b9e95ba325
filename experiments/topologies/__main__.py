"""Llama 3.1 8B on a slice of every TPU, full, LoRA, QLoRA: does it fit, how fast, at what cost?

    python -m experiments.topologies [--only v5e:8x8] [--dry-run]

Each cell is a command of graft preflight, which compiles the train step with the real TPU
compiler (`tools/setup preflight`), some minutes each. What results.json here has is not compiled
again; table.md is written anew after each. One row of 4096 tokens a device, or four.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from research.preflight.describe import FIT_COLUMNS
from research.reports.tables import Column, text_table
from research.runtime import signals
from research.runtime.accelerators import EXAMPLE_TOPOLOGIES, TPUS
from research.runtime.files import write_json
from research.runtime.programs import run_program

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CONFIG = "configs/pretrain/llama3_8b.py"
ADAPTER = '--config.method={"kind": "lora", "rank": 16}'
BFLOAT16 = '--config.model.storage=[[".*", "bfloat16"]]'
NF4 = '--config.model.storage=[["layers/.*", "nf4"], [".*", "bfloat16"]]'


class Form(NamedTuple):
    """A form of training, and the topologies of its lines in the table."""

    flags: tuple[str, ...]
    topologies: tuple[str, ...]
    # of 4096 tokens, for each device (TPU7x has two a chip); 0: as the flags say
    rows: int = 1


FORMS = {
    "full": Form(("--config.model.mlp_chunks=8",), ("v5e:16x16", *EXAMPLE_TOPOLOGIES)),
    "full, 4 rows": Form(
        ("--config.model.mlp_chunks=8", "--config.loss.vocabulary_chunks=32"), ("v5p:4x4x4",), 4
    ),
    "full, rows of 131,072": Form(
        (
            *("--config.model.mlp_chunks=8", "--config.data.sequence_length=131072"),
            *("--config.data.batch_size=4", "--config.mesh.fsdp=4", "--config.mesh.sequence=16"),
        ),
        ("v5p:4x4x4",),
        0,
    ),
    "LoRA": Form((ADAPTER, BFLOAT16), ("v5e:2x4", *EXAMPLE_TOPOLOGIES)),
    "QLoRA": Form((ADAPTER, NF4), ("v5e:1x1", *EXAMPLE_TOPOLOGIES)),
}
REPORT_KEYS = (
    *("chips", "fits", "limit_gib", "peak_gib", "argument_gib", "temp_gib", "weights_gib"),
    *("adapters_gib", "optimizer_gib", "model_flops", "hardware_flops", "memory_bytes"),
    *("sent_bytes", "seconds", "bound_by", "tokens_per_second", "utilisation", "money", "steps"),
    *("batch_size", "sequence_length", "mesh", "remat", "prices_of"),
)
COLUMNS = [
    Column("method", "method"),
    Column("topology", "topology"),
    Column("chips", "chips"),
    *FIT_COLUMNS,
    Column("price", "a billion tokens", "dollars", format=",.0f"),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=HERE / "results.json", metavar="FILE")
    parser.add_argument("--only", nargs="+", metavar="TOPOLOGY", help="these of them")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    arguments = parser.parse_args()
    file = arguments.results
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    cells = {
        f"{form} on {where}": (form, where) for form in FORMS for where in FORMS[form].topologies
    }
    for name, (form, topology) in cells.items():
        if name in results or (arguments.only and topology not in arguments.only):
            continue
        report = examine(topology, FORMS[form], arguments.dry_run)
        if report:
            results[name] = {what: report[what] for what in REPORT_KEYS if what in report}
            results = {name: results[name] for name in cells if name in results}
            write_json(file, results)
            file.with_name("table.md").write_text(table(results), encoding="utf-8")
    print(table(results))


def examine(topology: str, form: Form, dry_run: bool) -> dict[str, Any]:
    """Runs graft preflight for a cell and returns its report; empty in a dry run."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command_line = ["preflight", "--config", CONFIG, "--topology", topology, "--tries", "0"]
        if form.rows:
            devices = TPUS[topology.partition(":")[0]].devices_per_chip
            command_line += ["--sequences-per-chip", str(form.rows * devices)]
        command_line += form.flags
        print("$ graft", shlex.join(command_line), flush=True)
        if dry_run:
            return {}
        process = run_program(
            [sys.executable, "-m", "research.cli", *command_line, "--json", str(report)],
            cwd=ROOT,
        )
        if process.returncode not in (0, 3):  # 3: it does not fit, which is a result
            raise SystemExit(f"{command_line[0]} ended with {process.returncode}")
        return json.loads(report.read_text(encoding="utf-8"))


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown with a line for each cell."""
    rows = []
    for name, report in results.items():
        method, topology = name.split(" on ")
        tokens = report["steps"] * report["batch_size"] * report["sequence_length"]
        price = None if report["money"] is None else report["money"] / tokens * 1e9
        fits = "yes" if report["fits"] else "no"
        rows.append(
            {**report, "method": method, "topology": topology, "fits": fits, "price": price}
        )
    return text_table(rows, COLUMNS).rstrip("\n") + "\n"


if __name__ == "__main__":
    signals.end_program("topologies")
    main()
