"""Starts a training run where the chips are, follows it, and starts it again after a preemption.

    graft launch --target local  --config FILE --workdir DIR --processes 2
    graft launch --target tpu-vm --config FILE --workdir gs://BUCKET/RUN --topology v5e:4x4 \\
        --project ID --zone us-west4-a --spot
    graft launch --target gke    --config FILE --workdir gs://BUCKET/RUN --topology v5p:4x4x4 \\
        --slices 2 --image IMAGE --queue NAME
    graft launch --target slurm  --config FILE --workdir DIR --nodes 4 --gpus-per-node 8

It drives what exists: queued resources through gcloud, JobSet (and Kueue) through kubectl, Slurm
through sbatch. --dry-run prints every command and manifest and runs nothing; --delete ends what a
run of this name holds. Before TPUs are asked for, graft preflight compiles the run for them, and
what does not fit is not launched (--anyway launches it). Overrides, --config.a.b=value, go to the
run.
"""

import argparse
import sys
from collections.abc import Sequence

from research.runtime import signals, terminal

UNFOLLOWED = (
    "not followed any more. What was started goes on, and costs: the same command follows it "
    "again, with --delete it ends it"
)


def main(argv: Sequence[str] | None = None) -> None:
    from configs import presets
    from research.config import cli
    from research.launch import TARGETS, google
    from research.launch.job import Job, Shell

    parser = cli.program_parser("launch", __doc__)
    parser.add_argument("--target", required=True, choices=TARGETS, help="where it runs")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder")
    parser.add_argument("--name", metavar="NAME", help="default: the folder's name")
    parser.add_argument(
        "--topology", default="", metavar="VERSION:SHAPE", help="chips of one slice, as v5e:4x4"
    )
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="so many such slices")
    parser.add_argument("--spot", action="store_true", help="cheaper chips that can be taken away")
    parser.add_argument(
        "--restarts", type=int, default=10, metavar="N", help="most starts after the first"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--delete", action="store_true", help="end what a run of this name holds")
    parser.add_argument("--anyway", action="store_true", help="launch what preflight refuses, too")
    for name, target in TARGETS.items():
        target.add_flags(parser.add_argument_group(f"--target {name}"))
    arguments = cli.parse(parser, list(sys.argv[1:] if argv is None else argv))
    with cli.clear_errors():
        folder = arguments.workdir.rstrip("/").rpartition("/")[2]
        job = Job(
            arguments.name or folder.replace("_", "-").lower(),
            arguments.config,
            arguments.workdir,
            tuple(arguments.overrides),
            arguments.topology,
            arguments.slices,
            {"LIBTPU_INIT_ARGS": flags} if (flags := presets.flags(arguments.topology)) else {},
            arguments.restarts,
        )
        target, shell = TARGETS[arguments.target], Shell(arguments.dry_run)
        if arguments.delete:
            target.delete(job, arguments, shell)
            return
        if arguments.slices < 1 or arguments.restarts < 0:
            raise ValueError("--slices is 1 at least, --restarts 0")
        from research.experiment import Experiment

        # read here, so that a misspelled key costs nothing
        experiment = cli.load(Experiment, arguments.config, arguments.overrides)
        target.check(job, arguments, experiment)
        if job.topology:
            google.find(job.topology)
            _preflight(job, arguments, shell)
        if arguments.target != "local":  # whose processes end with it
            signals.set_ending(UNFOLLOWED)
        try:
            status = target.start(job, arguments, shell)
        except KeyboardInterrupt:  # where no program has called signals.end_program
            terminal.show(f"\nlaunch: {UNFOLLOWED}", flush=True)
            status = 130
    raise SystemExit(status)


def _preflight(job, arguments: argparse.Namespace, shell) -> None:
    """Compiles the run for its chips, and refuses what does not fit.

    Raises:
      ValueError: it does not fit, or that could not be found out.
    """
    flags = ["--config", job.config, "--topology", job.topology, "--slices", str(job.slices)]
    flags += [f"--config.{override}" for override in job.overrides]
    shell.echo("graft", "preflight", *flags)
    if shell.dry_run or arguments.anyway:
        return
    command = [sys.executable, "-m", "research.cli", "preflight", *flags, "--tries", "0"]
    from research.runtime.programs import run_program

    status = run_program(command).returncode
    if status:
        why = "preflight failed"
        if status == 3:
            why = "it does not fit (graft preflight, as above, looks for what would)"
        raise ValueError(f"{why}, so nothing was launched; --anyway launches it all the same")
