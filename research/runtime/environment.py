"""The Python that a command runs in: this one, .venv's, or that of an environment on top of it."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from research.runtime import signals

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv"

# the arguments of this program where it is `graft`, which starts it again
program_arguments: list[str] = []


def reexec_in_layer(layer: str) -> None:
    """Starts this program again in an environment on top of .venv, if that is there.

    Only where this is `graft` and not a program that uses it, as a test.
    """
    if layer and program_arguments:
        reexec_if_needed(program_arguments, layer)


def reexec_if_needed(argv: Sequence[str], layer: str = "") -> None:
    """Starts `graft ARGV` again in another Python where this one lacks what the command needs.

    Args:
        argv: the command and its arguments.
        layer: an environment on top of .venv (`tools/setup LAYER`) that is taken if it is there.

    Raises:
        SystemExit: the libraries are not installed; says how to install them.
    """
    is_installed = importlib.util.find_spec("jax") is not None
    for folder in [ENVIRONMENT / layer] * bool(layer) + [ENVIRONMENT] * (not is_installed):
        python = folder / "bin" / "python"
        if python.exists():
            if Path(sys.prefix) != folder:
                # its site-packages are .venv's, but not the path to this clone
                paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
                variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
                signals.hold()
                try:
                    os.execve(python, [str(python), "-m", "research.cli", *argv], variables)
                finally:
                    signals.release()
            return
    if not is_installed:
        raise SystemExit("jax is not there: run tools/setup")
