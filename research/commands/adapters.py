"""Lists adapters, merges them, takes them out again, adds them up, puts them side by side.

    graft adapters list runs                                   every adapter in a folder
    graft adapters merge --from runs/law --out runs/law_whole  a base with the adapter in it
    graft adapters unmerge --from runs/law_whole --adapter runs/law --out runs/base_again
    graft adapters add --from 0.7=runs/law --from 0.3=runs/style --out runs/both
    graft adapters add --from 0.5=runs/full_1 --from 0.5=runs/full_2 --out runs/soup
        whole models that started from one: their mean, a model like them
    graft adapters bank --from law=runs/law --from style=runs/style --out runs/bank

An adapter is the folder of a run that was tuned on a base. Merging happens in float32, on the
dequantised weights if the base is quantised, and leaves a certificate (certificate.json): the
largest difference of outputs on a probe, and the base's fingerprint before and after. A sum of
adapters is exact and an adapter itself; a bank holds several, and each row of a batch says which
it uses (`graft generate --run runs/bank` answers with each). To switch one off, use its base.
"""

import argparse
import dataclasses
from collections.abc import Sequence

from research.config import cli
from research.runtime import terminal


def main(argv: Sequence[str] | None = None) -> None:
    arguments = cli.complete(_parser()).parse_args(argv)
    verbs = {"list": show, "merge": merge, "unmerge": unmerge, "add": add, "bank": bank}
    with cli.clear_errors():
        verbs[arguments.verb](arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graft adapters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    list_parser = verbs.add_parser("list", help="every adapter in a folder and the folders in it")
    list_parser.add_argument("folder", nargs="?", default="runs")

    def add_verb(verb: str, help_text: str, source: str, several: bool = False):
        subparser = verbs.add_parser(verb, help=help_text)
        action = "append" if several else "store"
        subparser.add_argument("--from", dest="source", required=True, action=action, help=source)
        subparser.add_argument("--out", required=True, metavar="DIR", help="a new folder")
        subparser.add_argument("--base", metavar="RUN", help="where its base is, if it moved")
        return subparser

    add_verb("merge", "a base with the adapter in it", "the adapter's run")
    unmerge_help = "the base that a merged model was made of"
    add_verb("unmerge", unmerge_help, "the merged run").add_argument(
        "--adapter", required=True, metavar="RUN", help="the run that was merged"
    )
    sources = "WEIGHT=RUN, several times; one below zero as --from=-0.5=RUN"
    add_verb("add", "the weighted sum of adapters, or mean of whole models", sources, several=True)
    add_verb("bank", "adapters side by side", "NAME=RUN, several times", several=True)
    return parser


def show(arguments: argparse.Namespace) -> None:
    """Prints a table of adapters."""
    from research.adapters import catalog
    from research.reports.tables import Column, text_table
    from research.runtime import storage

    if not storage.absolute(arguments.folder).is_dir():
        raise FileNotFoundError(f"there is no folder {arguments.folder}")
    adapters = catalog.list_adapters(arguments.folder)
    if not adapters:
        terminal.show(f"no adapters in {arguments.folder}")
        return
    columns = [
        Column("path", "adapter"),
        Column("method", "method"),
        Column("adapters", "name"),
        Column("parameters", "parameters", format="si"),
        Column("bytes", "stored", "bytes", format="si"),
        Column("base", "base"),
        Column("base_fingerprint", "its fingerprint"),
    ]
    terminal.show(text_table([dataclasses.asdict(adapter) for adapter in adapters], columns))


def merge(arguments: argparse.Namespace) -> None:
    """Merges an adapter into its base."""
    from research.adapters import merging
    from research.checkpoints import runs

    run = runs.open_run(arguments.source, arguments.base)
    with _bar("parameter") as bar:
        certificate = merging.merge(run, arguments.out, lambda name: bar.update())
    base = certificate.base
    terminal.show(
        f"written to {arguments.out}, merged in {certificate.merged_in}\n"
        f"outputs    differ by at most {certificate.largest_difference:.2g} of "
        f"{certificate.largest_output:.3g} ({certificate.probe})\n"
        f"base       {base.path}, fingerprint {base.fingerprint_before[:16]} before and "
        f"{base.fingerprint_after[:16]} after"
    )


def unmerge(arguments: argparse.Namespace) -> None:
    """Takes an adapter out of a merged model."""
    from research.adapters import merging
    from research.checkpoints import runs

    run = runs.open_run(arguments.adapter, arguments.base)
    with _bar("parameter") as bar:
        report = merging.unmerge(
            runs.open_run(arguments.source), run, arguments.out, lambda name: bar.update()
        )
    terminal.show(
        f"written to {arguments.out}: weights differ from the base's by at most "
        f"{report['largest_difference']:.2g} of {report['largest_weight']:.3g}"
    )


def add(arguments: argparse.Namespace) -> None:
    """Adds adapters up, or whole models."""
    from research.adapters import soups, sums
    from research.checkpoints import runs

    parts = []
    for text in arguments.source:
        weight, separator, path = text.partition("=")
        try:
            number = float(weight)
        except ValueError:
            raise ValueError(
                f"--from {text}: write it as WEIGHT=RUN, such as 0.5=runs/law"
            ) from None
        if not separator or number != number or abs(number) == float("inf"):
            raise ValueError(f"--from {text}: write it as WEIGHT=RUN, such as 0.5=runs/law")
        parts.append((number, runs.open_run(path, arguments.base)))
    are_whole = all(run.base is None for _, run in parts)
    add_up = soups.add if are_whole else sums.add
    terminal.show(f"written to {add_up(parts, arguments.out)}")


def bank(arguments: argparse.Namespace) -> None:
    """Puts adapters side by side."""
    from research.adapters import banks, catalog

    adapters = catalog.open_named(arguments.source, arguments.base)
    terminal.show(f"written to {banks.write(adapters, arguments.out)}")


def _bar(unit: str):
    from tqdm import tqdm

    return tqdm(unit=unit, disable=None, leave=False)
