"""Flags of the commands that a run answers through: what it is, and how it is held."""

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


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Gives a parser `--cache-dtype`."""
    parser.add_argument(
        "--cache-dtype",
        choices=("float32", "bfloat16", "int8"),
        help="how keys and values of answers are stored (default: the type that is computed in)",
    )
