"""Flags of the commands that a run answers through: what it is, and how it is held."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from research.sharding import MeshConfig


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


def add_mesh(parser: argparse.ArgumentParser) -> None:
    """Gives a parser `--fsdp` and `--tensor`; see `mesh_of`."""
    group = parser.add_argument_group(
        "several devices: each holds the whole model and answers rows of its own, unless"
    )
    group.add_argument("--fsdp", type=int, default=1, metavar="N", help="N share weights and rows")
    group.add_argument("--tensor", type=int, default=1, metavar="N", help="N share every layer")


def mesh_of(arguments: argparse.Namespace) -> MeshConfig:
    """How all devices are arranged.

    Raises:
      ValueError: their number is no multiple of what is asked for.
    """
    import jax

    from research.sharding import MeshConfig

    config = MeshConfig(fsdp=arguments.fsdp, tensor=arguments.tensor)
    config.sizes(jax.device_count())
    return config
