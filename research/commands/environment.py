"""Where the programs in this folder run: in .venv, with the repository on the path.

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tools import environment

The first line lets a program find this file, however it is started. `environment.enter()` comes
before anything else is imported.
"""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"


def enter(layer: str = "") -> None:
    """Starts the program again with .venv's Python, where there is one and it is another.

    Args:
        layer: an environment on top of .venv (`tools/setup LAYER`) that is taken if it is there.

    Raises:
        SystemExit: the libraries are not installed; says how to install them.
    """
    for folder in (ENVIRONMENT / layer, ENVIRONMENT):
        python = folder / "bin" / "python"
        if python.exists():
            if Path(sys.prefix) != folder:
                os.execv(python, [str(python), *sys.argv])
            break
    if importlib.util.find_spec("jax") is None:
        raise SystemExit("jax is not there: run tools/setup")
