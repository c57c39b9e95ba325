"""GPUs of a Slurm cluster: one batch job, one process a GPU, queued again until it is finished."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from research.launch.job import STOPPED, Job, Shell

NOTICE = 120  # seconds before the time limit at which the run is told to save


def add_flags(parser) -> None:
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (default 1)")
    parser.add_argument(
        "--gpus-per-node", type=int, default=8, metavar="N", help="GPUs of each (default 8)"
    )
    parser.add_argument("--partition", default="", metavar="NAME")
    parser.add_argument("--time", default="", metavar="D-HH:MM:SS", help="limit of one start")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="FLAG",
        help="one more line for sbatch, such as --sbatch=--account=lab; may be repeated",
    )


def check(job: Job, arguments, experiment) -> None:
    if arguments.nodes < 1 or arguments.gpus_per_node < 1:
        raise ValueError("slurm: --nodes and --gpus-per-node are 1 at least")
    for flag in arguments.sbatch:
        if not flag.startswith("--"):
            raise ValueError(f"slurm: --sbatch={flag!r} is no flag of sbatch")
    for text in (job.name, arguments.partition, arguments.time, *arguments.sbatch):
        if re.search(r"\s", text):
            raise ValueError(f"slurm: {text!r} has a space or a line's end in it")


def start(job: Job, arguments, shell: Shell) -> int:
    """Submits the job; its script is sbatch's standard input, and a dry run prints it."""
    answer = shell.call("sbatch", "--parsable", stdin=script(job, arguments))
    number = answer.strip().partition(";")[0] or "JOB"
    print(
        f"launch: job {number}. Follow it: tail -F {log(job, number)}; "
        f"its place in the queue: squeue -j {number}; end it: scancel {number}",
        flush=True,
    )
    return 0


def delete(job: Job, arguments, shell: Shell) -> None:
    shell.call("scancel", f"--name={job.name}", "--me")


def log(job: Job, number: str) -> str:
    return f"{job.name}-{number}.log"


def script(job: Job, arguments) -> str:
    """The batch script for sbatch.

    When a signal stopped the run, at the time limit or before a preemption, or killed a process of
    it, the job is queued again, under its own number. `srun` makes one process a GPU, and ends with
    the highest of their statuses; JAX reads from Slurm which is which.
    """
    flags = [
        f"--job-name={job.name}",
        f"--nodes={arguments.nodes}",
        f"--ntasks-per-node={arguments.gpus_per_node}",
        f"--gpus-per-node={arguments.gpus_per_node}",
        f"--output={log(job, '%j')}",
        "--open-mode=append",
        "--requeue",
        f"--signal=TERM@{NOTICE}",
        *([f"--partition={arguments.partition}"] if arguments.partition else []),
        *([f"--time={arguments.time}"] if arguments.time else []),
        *arguments.sbatch,
    ]
    lines = [f"#SBATCH {flag}" for flag in flags]
    was_stopped = f"[ $status = {STOPPED} ] || [ $status -gt 128 ]"
    train = shlex.join(job.command(".venv/bin/python", "--distributed"))
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *lines,
            "set -u",
            f"cd {shlex.quote(str(Path.cwd()))}",
            f"srun --kill-on-bad-exit=1 {train}",
            "status=$?",
            f"if {{ {was_stopped}; }} && [ ${{SLURM_RESTART_COUNT:-0}} -lt {job.restarts} ]; then",
            '  scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            "exit $status",
            "",
        ]
    )
