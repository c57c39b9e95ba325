"""Flags of the commands that a run answers through, by itself or as the base of adapters."""

from __future__ import annotations

import argparse


def add(parser: argparse.ArgumentParser, together: str) -> None:
    """Gives a parser `--run`, `--base` and `--adapter`.

    Args:
      together: what several adapters do side by side.
    """
    parser.add_argument("--run", required=True, help="a run's folder, or one of its checkpoints")
    parser.add_argument("--base", help="where a tuned run's base is, if it moved")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=RUN",
        help=f"an adapter of --run, which is then its base; several {together} side by side",
    )
