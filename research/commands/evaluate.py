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

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from research.config import cli, schema

if TYPE_CHECKING:
    from research.batch import Batch
    from research.checkpoints.runs import Run
    from research.sharding import MeshConfig
    from research.training.heldout_loss import Score


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
    from research.reports.statistics import proportion_interval
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
        with scorer(run, arguments.adapter, evaluation.mesh) as score:
            if evaluation.text is not None:
                text = tasks.score_text(score, evaluation.text, run.tokenizer)
                report["bits_per_byte"] = {
                    name: scores.bits_per_byte for name, scores in text.items()
                }
            if evaluation.choice is not None:
                answers = tasks.answer_questions(score, evaluation.choice, run.tokenizer)
                quality = proportion_interval(answers.correct, groups=answers.groups)
                report["quality"] = dataclasses.asdict(quality)
                report["truncated"] = answers.truncated
                rows = zip(answers.expected, answers.predictions, strict=True)
                report["answers"] = [list(row) for row in rows]
                if is_main_process:
                    print(f"right answers: {quality:.1%} % of {quality.n}, {answers.truncated} cut")
        if evaluation.text is None and evaluation.choice is None:
            raise ValueError("the config has neither `text` nor `choice`: nothing to measure")
    if not is_main_process:
        return
    for name, bits in report.get("bits_per_byte", {}).items():
        print(f"{name}: {bits:.3f} bits per byte")
    if arguments.out:
        files.write_json(arguments.out, report)


@contextlib.contextmanager
def scorer(run: Run, adapter: str | None = None, mesh: MeshConfig | None = None) -> Iterator[Score]:
    """Context with the scoring function of a run, its model loaded onto all devices.

    Args:
      adapter: which of a bank's adapters all rows use.
      mesh: how all devices are arranged; None: each has the whole model.

    Raises:
      ValueError: a bank without a name, or a name that there is not.
    """
    import numpy as np

    from research import sharding
    from research.adapters import banks
    from research.checkpoints import runs
    from research.training.heldout_loss import make_score

    bank = run.method.bank_names
    if bool(bank) != (adapter is not None):
        available = ", ".join(bank) or "none"
        raise ValueError(f"--adapter names one of a bank's adapters; {run.path} has {available}")
    adapter_number = banks.adapter_number(run.method, adapter)

    devices, rules = (mesh or sharding.MeshConfig()).make(), sharding.RULES
    with sharding.mesh_context(devices, rules):
        model = runs.load_model(run, devices, rules)
        score = make_score(model, sharding.batch_sharding(devices, rules))

        def with_adapter(batch: Batch) -> np.ndarray:
            rows = np.full(len(batch.tokens), adapter_number, np.int32)
            return score(dataclasses.replace(batch, adapter=rows))

        yield with_adapter if bank else score
