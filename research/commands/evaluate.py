"""Evaluates a trained run: bits per byte of held-out text, and questions with known answers.

    graft evaluate --config configs/quickstart/evaluate.py --run runs/quickstart/lora
    graft evaluate --config configs/quickstart/evaluate.py \\
        --run runs/quickstart/pretrain --config.choice.shots=4

Prints a line a task and, with `--out FILE`, writes everything as JSON, answers row by row, so that
two runs can be compared on the same rows (`research.reports.statistics.paired_difference`).
A model that one device does not hold: `--config.mesh.data=1 --config.mesh.fsdp=-1`, and with
--distributed on each host, all hosts together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from research.config import cli, schema
from research.runtime.terminal import show


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.program_parser("evaluate", __doc__)
    parser.add_argument("--run", required=True, metavar="DIR", help="a run, or a checkpoint of it")
    parser.add_argument("--base", metavar="DIR", help="where a tuned run's base is, if it moved")
    parser.add_argument("--adapter", metavar="NAME", help="of a bank: which adapter to measure")
    parser.add_argument("--out", metavar="FILE", help="write the results as JSON")
    cli.add_distributed(parser)
    arguments = cli.parse(parser, argv)

    from research.checkpoints import runs
    from research.evaluation import tasks
    from research.evaluation.report import evaluate_run
    from research.runtime import distributed, files, storage
    from research.runtime.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    with distributed.abort_on_error(), cli.clear_errors():
        is_main_process = distributed.initialize() if arguments.distributed else True
        if arguments.out:
            if storage.is_folder(arguments.out):
                raise ValueError(f"--out {arguments.out} is a folder; name a file")
            if is_main_process:
                storage.check_writable(storage.absolute(arguments.out).parent)
        evaluation = cli.load(tasks.Evaluation, arguments.config, arguments.overrides)
        run = runs.open_run(arguments.run, arguments.base)
        report: dict[str, Any] = {"run": str(run.path), "fingerprint": run.fingerprint}
        if arguments.adapter:
            report["adapter"] = arguments.adapter
        distributed.check_equal_across_processes(
            config=json.dumps(schema.to_dict(evaluation), sort_keys=True), model=run.fingerprint
        )
        results = evaluate_run(run, evaluation, arguments.adapter)
        report |= results.to_dict()
    if not is_main_process:
        return
    if results.answers is not None and (quality := results.quality):
        cut_count = results.answers.truncated
        show(f"right answers: {quality:.1%} % of {quality.n}, {cut_count} cut")
    for name, bits in report.get("bits_per_byte", {}).items():
        show(f"{name}: {bits:.3f} bits per byte")
    if arguments.out:
        files.write_json(arguments.out, report)
