"""Starts a run, or a study, where the chips are, and starts it again after a preemption.

    graft launch --target local  --config FILE --workdir DIR --processes 2
    graft launch --target tpu-vm --config FILE --workdir gs://BUCKET/RUN --topology v5e:4x4 \\
        --project ID --zone us-west4-a --spot
    graft launch --target gke    --config FILE --workdir gs://BUCKET/RUN --topology v5p:4x4x4 \\
        --slices 2 --image IMAGE --queue NAME
    graft launch --target slurm  --config FILE --workdir DIR --nodes 4 --gpus-per-node 8
    graft launch --target TARGET --study experiments/NAME --workdir DIR --shares 8
        trials of a study on so many machines, which share its folder

It drives what exists: queued resources through gcloud, JobSet (and Kueue) through kubectl, Slurm
through sbatch. --dry-run prints every command and manifest and runs nothing; --delete ends what a
run of this name holds. Before TPUs are asked for, graft preflight compiles the run for them, and
what does not fit is not launched (--anyway launches it). Overrides, --config.a.b=value, go to the
run.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

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

    parser = cli.program_parser("launch", __doc__, config_required=False)
    parser.add_argument("--study", metavar="DIR", help="in place of --config: a study's folder")
    parser.add_argument(
        "--shares", type=int, default=1, metavar="N", help="processes that share a study's trials"
    )
    parser.add_argument("--target", required=True, choices=TARGETS, help="where it runs")
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="the folder of the run, or of the study's trials and ledger",
    )
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
        if bool(arguments.config) == bool(arguments.study):
            raise ValueError("give --config FILE, or --study DIR")
        folder = arguments.workdir.rstrip("/").rpartition("/")[2]
        flags = presets.flags(arguments.topology)
        settings = {
            "name": arguments.name or folder.replace("_", "-").lower(),
            "workdir": arguments.workdir,
            "topology": arguments.topology,
            "slices": arguments.slices,
            "environment": {"LIBTPU_INIT_ARGS": flags} if flags else {},
            "restarts": arguments.restarts,
        }
        target, shell = TARGETS[arguments.target], Shell(arguments.dry_run)
        if arguments.study:
            raise SystemExit(_launch_study(settings, arguments, target, shell))
        overrides = tuple(arguments.overrides)
        job = Job(config=arguments.config, overrides=overrides, **settings)
        if arguments.delete:
            target.delete(job, arguments, shell)
            return
        if arguments.slices < 1 or arguments.restarts < 0:
            raise ValueError("--slices is 1 at least, --restarts 0")
        from research.phases.phased import PhasedExperiment

        # read here, so that a misspelled key costs nothing
        experiment = cli.load(PhasedExperiment, arguments.config, arguments.overrides)
        target.check(job, arguments, experiment)
        if job.topology:
            google.find(job.topology)
            _preflight(job, arguments, shell)
        status = _follow(target.start, job, arguments, shell)
    raise SystemExit(status)


def _launch_study(settings: dict[str, Any], arguments: argparse.Namespace, target, shell) -> int:
    """Launches the shares of a study, or ends them; the exit status.

    Raises:
      ValueError: the study does not fit its config or the target; nothing was launched.
    """
    from research.launch.job import StudyJob
    from research.studies.study import load
    from research.studies.trials import Resolver

    if arguments.shares < 1 or arguments.restarts < 0:
        raise ValueError("--shares is 1 at least, --restarts 0")
    if arguments.overrides:
        raise ValueError("a study takes no --config.key=value: change its study.py")
    study = load(arguments.study)
    job = StudyJob(
        config=study.config,
        study=arguments.study,
        shares=arguments.shares,
        bases=tuple(study.bases),
        **settings,
    )
    if arguments.delete:
        target.delete(job, arguments, shell)
        return 0
    target.check_study(job, arguments, Resolver(study).experiments())
    if job.topology:
        _preflight_study(job, arguments, shell)
    return _follow(target.start_study, job, arguments, shell)


def _follow(start, job, arguments: argparse.Namespace, shell) -> int:
    if arguments.target != "local":  # whose processes end with it
        signals.set_ending(UNFOLLOWED)
    try:
        return start(job, arguments, shell)
    except KeyboardInterrupt:  # where no program has called signals.end_program
        terminal.show(f"\nlaunch: {UNFOLLOWED}", flush=True)
        return 130


def _preflight(job, arguments: argparse.Namespace, shell) -> None:
    """Compiles the run for its chips, and refuses what does not fit."""
    flags = ["--config", job.config, "--topology", job.topology, "--slices", str(job.slices)]
    flags += [f"--config.{override}" for override in job.overrides]
    _check_fit(["preflight", *flags], arguments, shell, "--tries", "0")


def _preflight_study(job, arguments: argparse.Namespace, shell) -> None:
    """Compiles the study's runs for their chips, says what it costs, refuses what does not fit."""
    flags = ["--topology", job.topology, "--folder", job.workdir]
    _check_fit(["study", "plan", job.study, *flags, "--shares", str(job.shares)], arguments, shell)


def _check_fit(command: list[str], arguments: argparse.Namespace, shell, *more: str) -> None:
    """Runs a command of ours that ends with 3 where something does not fit.

    Raises:
      ValueError: it does not fit, or that could not be found out.
    """
    shell.echo("graft", *command)
    if shell.dry_run or arguments.anyway:
        return
    from research.runtime.programs import run_program

    status = run_program([sys.executable, "-m", "research.cli", *command, *more]).returncode
    if status:
        why = "preflight failed"
        if status == 3:
            why = "it does not fit (graft preflight looks for what would)"
        raise ValueError(f"{why}, so nothing was launched; --anyway launches it all the same")
