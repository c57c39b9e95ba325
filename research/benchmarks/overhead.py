"""The time that a run spends beside its steps: start, data, host work, checkpoints, evaluation.

Runs `graft train` twice in fresh folders, first with an empty cache of compiled programs, and
reads what the runs say of themselves; then times the same step alone, batch and state in place.
Each save comes with a held-out loss on some 20,000 tokens of each source.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from research.benchmarks import harness

# what the host does between two steps while the devices work on the one before
HOST = ("data", "dispatch", "logging")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="configs/quickstart/pretrain.py")
    parser.add_argument("--tokenizer", default="runs/quickstart/tokenizer.json")
    parser.add_argument("--steps", type=harness.positive, default=60)
    parser.add_argument("--saves", type=harness.positive, default=3, help="checkpoints in the run")


def main(arguments: argparse.Namespace) -> harness.Results:
    if not Path(arguments.tokenizer).exists():
        raise SystemExit(f"{arguments.tokenizer} is not there: run tools/quickstart first")
    results: harness.Results = dict(harness.machine())
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "warm"):
            times = _train(arguments, Path(folder), name)
            results |= _report(name, times, arguments.saves)
            warm_rate = times.steps / times.loop
    settings = {"shape": "quickstart", "method": "full", "dtype": "float32", "optimizer": "muon"}
    if arguments.config == "configs/quickstart/pretrain.py":
        module = ("research.benchmarks.graft_step", settings)
        with harness.contenders({"the step alone": module}) as ready:
            step_times = harness.take_turns(ready, 3, 4.0)["the step alone"]
        alone = harness.rate(1, step_times)
        results |= alone.to_results("alone.steps_per_second")
        share = warm_rate / alone.middle
        results["warm.share_of_step_alone"] = share
        print(f"the loop runs at {share:.1%} of the step alone")
    return results


@dataclasses.dataclass(frozen=True)
class _TrainingTimes:
    """Times of a run, in seconds.

    Attributes:
      first_step: from the program's start to the end of its first step.
      parts: what the run spent on each part of its work.
    """

    first_step: float
    steps: int
    parts: dict[str, float]

    @property
    def host(self) -> float:
        """Seconds of the host's work between two steps."""
        return sum(self.parts.get(part, 0.0) for part in HOST)

    @property
    def loop(self) -> float:
        """All steps with the host's work between them."""
        return self.host + self.parts["step"]


def _train(arguments: argparse.Namespace, folder: Path, name: str) -> _TrainingTimes:
    """Runs `graft train` in a folder of this name.

    Raises:
      RuntimeError: it failed, with its output.
    """
    command = [
        sys.executable, "-m", "research.cli", "train", "--workdir", str(folder / name),
        "--config", arguments.config, f"--config.tokenizer={arguments.tokenizer}",
        f"--config.steps={arguments.steps}",
        f"--config.checkpoint.every={arguments.steps // arguments.saves}",
        "--config.evaluate_split=heldout", "--config.evaluate_tokens=20000",
        f"--config.evaluate_every={arguments.steps // arguments.saves}",
    ]  # fmt: skip
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    start = time.monotonic()
    first = None
    print(f"{name}: {' '.join(command[1:])}", file=sys.stderr)
    with subprocess.Popen(
        command,
        cwd=harness.ROOT,
        env={**harness.ENVIRONMENT, **os.environ, **cache},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        output = []
        for line in process.stderr:
            output.append(line)
            if first is None and line.startswith("step 1/"):
                first = time.monotonic() - start
    if process.returncode or first is None:
        raise RuntimeError("the run failed:\n" + "".join(output))
    summary = json.loads((folder / name / "summary.json").read_text(encoding="utf-8"))
    return _TrainingTimes(first, summary["steps"], summary["timing"])


def _report(name: str, times: _TrainingTimes, saves: int) -> harness.Results:
    parts, loop = times.parts, times.loop
    step = loop / times.steps
    stall = parts["checkpoint"] / saves
    evaluation = parts["evaluation"] / saves
    logging = parts.get("logging", 0.0)
    print(
        f"\n{name}: first step after {times.first_step:.1f} s ({parts['compile']:.1f} s of it "
        "compiling)"
    )
    print(
        f"  a step   {step * 1e3:.1f} ms; the host is not waiting for it "
        f"{times.host / loop:.2%} of that"
    )
    print(f"  data     waits {parts['data'] / loop:.2%}")
    print(f"  logging  {logging / loop:.2%}")
    print(
        f"  a save   stalls {stall * 1e3:.0f} ms, {stall / step:.2f} of a step (the first compiles)"
    )
    print(f"  held-out loss {evaluation:.2f} s a time, {evaluation / step:.1f} steps")
    return {
        f"{name}.evaluation_seconds": evaluation,
        f"{name}.first_step_seconds": times.first_step,
        f"{name}.compile_seconds": parts["compile"],
        f"{name}.steps_per_second": 1 / step,
        f"{name}.host_share": times.host / loop,
        f"{name}.data_share": parts["data"] / loop,
        f"{name}.logging_share": logging / loop,
        f"{name}.save_stall_seconds": stall,
        f"{name}.save_stall_steps": stall / step,
    }
