"""Prepares documents for pretraining: filters, removes duplicates, tokenizes once.

    graft prepare --config configs/data/generic_text.py --out data/generic_text --dry-run
    graft prepare --config configs/data/generic_text.py --out data/generic_text
    graft prepare --config FILE --out DIR --config.near_duplicates.threshold=0.7
    graft prepare --config FILE --out DIR -- --direct_num_workers=4
    graft prepare --config FILE --out gs://BUCKET/DIR -- --runner=DataflowRunner ...

What follows `--` goes to Apache Beam as it is. By default all cores of this machine work. Each
stage is kept in DIR/stages under the hash of what it depends on: a killed run goes on after the
last stage that was finished, a second run does nothing, and a changed config makes anew only what
depends on the change. A run trains on the result with a source of kind "prepared" whose path is
DIR. Needs `tools/setup prepare`; docs/guides/preparation.md tells more.
"""

import sys
from collections.abc import Sequence

from research.runtime.terminal import show


def main(argv: Sequence[str] | None = None) -> None:
    from research.config import cli

    command_line = list(sys.argv[1:] if argv is None else argv)
    split = command_line.index("--") if "--" in command_line else len(command_line)
    parser = cli.program_parser("prepare", __doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="a folder, on a disk or bucket")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, write nothing")
    arguments = cli.parse(parser, command_line[:split])
    with cli.clear_errors():
        from research.preparation import pipeline
        from research.preparation.config import PreparationConfig
        from research.preparation.runner import Runner

        config = cli.load(PreparationConfig, arguments.config, arguments.overrides)
        if arguments.dry_run:
            show(pipeline.describe_plan(pipeline.make_plan(config, arguments.out)))
            return
        pipeline.prepare(config, arguments.out, Runner(command_line[split + 1 :]))
