"""Numbers of a trained model that only one study asks for: functions in a file of its own.

    measures=("experiments/NAME/measures.py:intruder_dimensions",)

A function takes the run and its experiment and gives column -> number. The text of its file is part
of a trial's address.
"""

from __future__ import annotations

from research.checkpoints.runs import Run
from research.config.functions import call_function
from research.experiment import Experiment

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
