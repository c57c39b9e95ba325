"""Numbers of a trained model that only one study asks for: functions in a file of its own.

    measures=("experiments/NAME/measures.py:intruder_dimensions",)

A function takes the run and its experiment and gives column -> number. The text of its file is part
of a trial's address.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from research.checkpoints.runs import Run
from research.experiment import Experiment
from research.studies.functions import call_function, split_function

SETTING = "measures"


def measure(name: str, run: Run, experiment: Experiment) -> dict[str, float]:
    """The columns that a function gives.

    Raises:
      ValueError: there is no such function, it fails, or gives something else.
    """
    columns = call_function(name, SETTING, run, experiment)
    if not isinstance(columns, dict):
        raise ValueError(f"{name} must return a dict, not {type(columns).__name__}")
    return {str(column): float(number) for column, number in columns.items()}


def digest(name: str) -> str:
    """What a trial's address has of a function: its name, and the text of its file.

    Raises:
      FileNotFoundError: there is no such file.
    """
    file, function = split_function(name, SETTING)
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {file}, which `{SETTING}` names")
    return f"{function} {hashlib.sha256(path.read_bytes()).hexdigest()[:20]}"
