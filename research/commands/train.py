"""Trains a model: from scratch, from a base, wholly, partly or through an adapter.

    graft train --config configs/FILE.py[:ARG] --workdir DIR [--config.a.b=value ...]

One program for every phase: the config's `data` says what is learnt (`objective`), `method` what
is attached and trains, `init_from` where the weights start. Run it again with the same folder and
it resumes at the last checkpoint, to the same bits. Ctrl-C or SIGTERM saves and exits with status
75, which says to start it again; before the first step, and the second time, it ends the program at
once (130 or 143).

On several hosts each runs this with --distributed: they are one run with one mesh over all devices,
and a signal to one of them stops all at the same step. They share the folder.

What the config's `evaluation` asks (tasks of graft evaluate) is asked every `evaluate_every` steps;
`checkpoint.keep_best` keeps the best step by `checkpoint.best_metric`, and RUN/best opens it.

A config's `phases` are experiments in a row, such as supervised tuning and then preferences on the
same adapter: each has its run in the folder's phases/N_NAME, and the next goes on from it.

In the folder: config.json, tokenizer.json, metrics.jsonl, tensorboard/, checkpoints/, summary.json.
"""

from __future__ import annotations

from collections.abc import Sequence

from research.config import cli


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.program_parser("train", __doc__)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan, train nothing"
    )
    cli.add_distributed(parser)
    arguments = cli.parse(parser, argv)

    from research.evaluation.in_training import open_tasks
    from research.phases.phased import PhasedExperiment
    from research.phases.run import train_phases
    from research.runtime import distributed, environment, locks, signals
    from research.runtime.compilation_cache import enable_compilation_cache
    from research.training.session import Session

    enable_compilation_cache()
    with distributed.abort_on_error(), cli.clear_errors():
        if arguments.distributed:
            distributed.initialize()
        experiment = cli.load(PhasedExperiment, arguments.config, arguments.overrides)
        for rollouts in [phase.rollouts for phase in experiment.phases if phase.rollouts]:
            environment.reexec_in_layer(rollouts.task.layer)
        try:
            session = Session(open_tasks)
            summary = train_phases(experiment, arguments.workdir, arguments.dry_run, session)
        except locks.LockLostError as error:  # a save may be at work in the background
            distributed.end_at_once(f"error: {error}")
        if summary and not summary.finished:
            signals.set_ending("all is saved", distributed.EXIT_RESTART)
            raise SystemExit(distributed.EXIT_RESTART)
        signals.set_ending("all is saved", status=0)
