#!/usr/bin/env python3
"""Prepares documents for pretraining: filters, removes duplicates, tokenises once.

    tools/prepare_data.py --config configs/data/generic_text.py --out data/generic_text --dry-run
    tools/prepare_data.py --config configs/data/generic_text.py --out data/generic_text
    tools/prepare_data.py --config FILE --out DIR --config.near_duplicates.threshold=0.7
    tools/prepare_data.py --config FILE --out DIR -- --direct_num_workers=4
    tools/prepare_data.py --config FILE --out gs://BUCKET/DIR -- --runner=DataflowRunner ...

What follows `--` goes to Apache Beam as it is. By default all cores of this machine work. Each
stage is kept in DIR/stages under the hash of what it depends on: a killed run goes on after the
last stage that was finished, a second run does nothing, and a changed config makes anew only what
depends on the change. A run trains on the result with a source of kind "prepared" whose path is
DIR. Needs `tools/setup prepare`; docs/data_preparation.md tells more.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools import environment  # noqa: E402


def main(argv: Sequence[str] | None = None) -> None:
    if argv is None:
        environment.enter("prepare")  # help and plans need none of it
    from research import config as door

    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    parser = door.program_parser(__doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="a folder, on a disk or bucket")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, write nothing")
    arguments = door.parse(parser, words[:split])
    with door.clear_errors():
        from research.data.preparation import pipeline
        from research.data.preparation.config import PreparationConfig
        from research.data.preparation.running import Runner

        config = door.load(PreparationConfig, arguments.config, arguments.overrides)
        if arguments.dry_run:
            print(pipeline.describe(pipeline.plan(config, arguments.out)))
            return
        pipeline.prepare(config, arguments.out, Runner(words[split + 1 :]))


if __name__ == "__main__":
    main()
