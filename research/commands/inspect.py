"""Shows the data of a run exactly as its model sees it, and its faults.

    graft inspect --config configs/quickstart/tune.py:lora
        two rows of the first batch, a summary of every source, and what the checks before
        training say; ends with 1 where training would refuse
    graft inspect --config configs/quickstart/tune.py:lora --html look.html --rows 20
        the same as one page, with more rows
    graft inspect --config FILE --row 17 --source notes
        the row of a batch in which row 17 of the source `notes` is trained on
    graft inspect --config FILE --find "GNU General Public" --rows 5 --tokens
        rows that hold a text, with a line between tokens
    graft inspect --config FILE --split test --split validation
        are rows of these splits, or nearly equal ones, in the training split?
    graft inspect --run runs/quickstart/lora
        what a run has read, by the config in its folder

Rows come from the run's own batches. On a terminal, trained tokens are green, special tokens
inverse, and what sees both ways is underlined; without colors (a pipe, NO_COLOR) they stand in
⟦ ⟧, in « » and before ‖.
"""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    from research.config import cli

    parser = cli.program_parser("inspect", __doc__, config_required=False)
    parser.add_argument("--run", metavar="DIR", help="a run's folder, in place of a config")
    parser.add_argument("--rows", type=int, metavar="N", help="rows shown (default 2; 1 of --row)")
    parser.add_argument(
        "--step", type=int, default=0, metavar="T", help="from which batch on (default 0)"
    )
    parser.add_argument("--row", type=int, metavar="I", help="show where row I of a source is")
    parser.add_argument("--source", metavar="NAME", help="of which source --row is, or all are")
    parser.add_argument("--find", metavar="TEXT", help="show rows that hold this text")
    parser.add_argument(
        "--split", action="append", default=[], metavar="NAME", help="a held-out split to compare"
    )
    parser.add_argument("--tokens", action="store_true", help="show where tokens begin")
    parser.add_argument("--no-near", action="store_true", help="compare no nearly equal rows")
    parser.add_argument("--html", type=cli.on_disk, metavar="FILE", help="write a page")
    parser.add_argument("--json", type=cli.on_disk, metavar="FILE", help="write everything as JSON")
    arguments = cli.parse(parser, argv)
    if bool(arguments.run) == bool(arguments.config):
        parser.error("give one of --config and --run")
    if arguments.run and arguments.overrides:
        parser.error("--run takes the run's own config: nothing of it can be set")
    if arguments.rows is not None and arguments.rows < 0:
        parser.error(f"--rows is a number of rows from 0 on, not {arguments.rows}")
    for flag, path in (("--html", arguments.html), ("--json", arguments.json)):
        if path and path.is_dir():
            parser.error(f"{flag} {path} is a folder: name a file in it")
    with cli.clear_errors():
        sys.exit(inspect(arguments))


def inspect(arguments) -> int:
    """Prints rows and summary, and writes files; 1 where training would refuse the data."""
    from research.config import cli, schema
    from research.experiment import Experiment
    from research.inspection import page, terminal
    from research.inspection import rows as inspection
    from research.inspection.summarize import summarize
    from research.runtime import storage
    from research.runtime.files import write_json

    if arguments.run:
        experiment = schema.load_json(Experiment, storage.absolute(arguments.run) / "config.json")
    else:
        experiment = cli.load(Experiment, arguments.config, arguments.overrides)
    data = inspection.open_data(experiment, arguments.split)
    rows = inspection.choose_rows(
        data,
        (2 if arguments.row is None else 1) if arguments.rows is None else arguments.rows,
        first_step=arguments.step,
        source=arguments.source,
        row=arguments.row,
        text=arguments.find,
    )
    color = terminal.supports_color(sys.stdout)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    print(f"{terminal.legend(color)}\n")
    for row in rows:
        print(terminal.show_row(row, data.tokenizer, color, arguments.tokens) + "\n")
    summaries = summarize(data, near=not arguments.no_near)
    print(terminal.show_summary(data, summaries))
    if arguments.html:
        title = arguments.config or arguments.run
        path = page.write(arguments.html, data, rows, summaries, title)
        print(f"written to {path}")
    if arguments.json:
        row_content = [inspection.to_json(row, data.tokenizer) for row in rows]
        content = {
            "faults": data.faults,
            "sources": [each.to_json() for each in summaries],
            "rows": row_content,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.json, content)
        print(f"written to {arguments.json}")
    return 1 if data.faults else 0
