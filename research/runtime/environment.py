"""The Python that a command runs in: this one, .venv's, or that of an environment on top of it."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from research.runtime import signals

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv"

# of glibc's memory; what a user has set is left as it is
_TUNABLES = "GLIBC_TUNABLES"
_HUGE_PAGES = {_TUNABLES: "glibc.malloc.hugetlb=1"}

# the arguments of this program where it is `graft`, which starts it again
program_arguments: list[str] = []


def reexec_in_layer(layer: str) -> None:
    """Starts this program again in an environment on top of .venv, if that is there.

    Only where this is `graft` and not a program that uses it, as a test.
    """
    if layer and program_arguments:
        reexec_if_needed(program_arguments, layer)


def reexec_if_needed(argv: Sequence[str], layer: str = "") -> None:
    """Starts `graft ARGV` again in another Python where this one lacks what the command needs, or
    in this one with huge pages, which make all that computes on a CPU a tenth faster or more.

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
                variables = {"PYTHONPATH": os.pathsep.join(paths)}
                _execute([str(python), "-m", "research.cli", *argv], variables)
            break
    else:
        if not is_installed:
            raise SystemExit("jax is not there: run tools/setup")
    if program_arguments and sys.executable and _TUNABLES not in os.environ and has_glibc():
        _execute([sys.executable, *sys.orig_argv[1:]], {})


def _execute(command: list[str], variables: dict[str, str]) -> None:
    """Runs another program in the place of this one, with huge pages unless a user says
    otherwise."""
    signals.hold()
    try:
        os.execve(command[0], command, {**_HUGE_PAGES, **os.environ, **variables})
    finally:
        signals.release()


def has_glibc() -> bool:
    """Whether memory is given out by glibc, which reads its settings as a program starts."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, OSError, ValueError):  # another system
        return False
