"""GPUs of a Slurm cluster: one batch job, one process a GPU, queued again until it is finished; or
the shares of a study as a job array."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from research.launch.job import STOPPED, Job, Shell, StudyJob
from research.runtime import storage

NOTICE = 120  # seconds before the time limit at which the run is told to save


def add_flags(parser) -> None:
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (default 1)")
    parser.add_argument(
        "--gpus-per-node",
        type=int,
        metavar="N",
        help="GPUs of each (default 8; of a share of a study 1, and 0 takes its cores)",
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
    if arguments.nodes < 1 or _gpus(job, arguments) < 1:
        raise ValueError("slurm: --nodes and --gpus-per-node are 1 at least")
    _check_words(job, arguments)


def check_study(job: StudyJob, arguments, experiments) -> None:
    if arguments.nodes > 1 or _gpus(job, arguments) < 0:
        raise ValueError(
            "slurm: a share of a study runs its trials on one machine; --shares N takes N of them"
        )
    if storage.is_remote(job.workdir):
        storage.absolute(job.workdir)  # says what a bucket needs
    _check_words(job, arguments)


def _gpus(job: Job, arguments) -> int:
    """GPUs of each machine."""
    if arguments.gpus_per_node is None:
        return 1 if isinstance(job, StudyJob) else 8
    return arguments.gpus_per_node


def _check_words(job: Job, arguments) -> None:
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


def start_study(job: StudyJob, arguments, shell: Shell) -> int:
    """Submits the array; its script is sbatch's standard input, and a dry run prints it."""
    answer = shell.call("sbatch", "--parsable", stdin=study_script(job, arguments))
    number = answer.strip().partition(";")[0] or "JOB"
    print(
        f"launch: job array {number} of {job.shares}. What runs, and what is done: graft study "
        f"status {shlex.quote(job.study)} --folder {shlex.quote(job.workdir)}; the log of share I: "
        f"{log(job, f'{number}_I')}; the queue: squeue -j {number}; end it: scancel {number}",
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
    gpus = _gpus(job, arguments)
    flags = [
        f"--nodes={arguments.nodes}",
        f"--ntasks-per-node={gpus}",
        f"--gpus-per-node={gpus}",
        f"--output={log(job, '%j')}",
    ]
    return _script(job, arguments, flags, shlex.join(job.on_cluster()), '"$SLURM_JOB_ID"')


def study_script(job: StudyJob, arguments) -> str:
    """The batch script of an array: each element runs one process, and its share of the trials.

    An element that was stopped or killed is queued again, by itself: the number of one element is
    that of the whole array.
    """
    gpus = _gpus(job, arguments)
    flags = [
        f"--array=0-{job.shares - 1}",
        "--nodes=1",
        "--ntasks=1",
        *([f"--gpus-per-node={gpus}"] if gpus else []),
        f"--output={log(job, '%A_%a')}",
    ]
    run = f'{shlex.join(job.on_cluster())} --share "$SLURM_ARRAY_TASK_ID/{job.shares}"'
    element = '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'
    return _script(job, arguments, flags, run, element)


def _script(job: Job, arguments, flags: list[str], command: str, job_number: str) -> str:
    """A script that runs a command, and queues its job again where that was stopped.

    Args:
      flags: for sbatch, beside those of every job.
      command: for the shell.
      job_number: for the shell, what `scontrol requeue` takes.
    """
    flags = [
        f"--job-name={job.name}",
        *flags,
        "--open-mode=append",
        "--requeue",
        f"--signal=TERM@{NOTICE}",
        *([f"--partition={arguments.partition}"] if arguments.partition else []),
        *([f"--time={arguments.time}"] if arguments.time else []),
        *arguments.sbatch,
    ]
    was_stopped = f"[ $status = {STOPPED} ] || [ $status -gt 128 ]"
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *(f"#SBATCH {flag}" for flag in flags),
            "set -u",
            f"cd {shlex.quote(str(Path.cwd()))}",
            f"srun --kill-on-bad-exit=1 {command}",
            "status=$?",
            f"if {{ {was_stopped}; }} && [ ${{SLURM_RESTART_COUNT:-0}} -lt {job.restarts} ]; then",
            f"  scontrol requeue {job_number}",
            "fi",
            "exit $status",
            "",
        ]
    )
