"""Every config builds, and its docstring says how to run it and what to expect."""

import ast
from pathlib import Path

import pytest

from configs import presets
from research.config import cli
from research.evaluation.tasks import Evaluation
from research.experiment import Experiment
from research.phases.phased import PhasedExperiment
from research.preparation.config import PreparationConfig

ROOT = Path(__file__).resolve().parents[2]
# what a command takes as its config
CLASSES = {"train": PhasedExperiment, "evaluate": Evaluation, "prepare": PreparationConfig}
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").glob("*/*.py"))


def docstring(file: str) -> str:
    return ast.get_docstring(ast.parse((ROOT / file).read_text())) or ""


def command(file: str) -> str:
    """The command in a config's docstring that takes it."""
    name = Path(file).stem
    if file == f"configs/tasks/{name}.py":
        assert f"graft evaluate --task {name} --run" in docstring(file)
        return "evaluate"
    matches = [name for name in CLASSES if f"graft {name} --config {file}" in docstring(file)]
    assert len(matches) == 1, f"{file}: its docstring shows no command that takes it"
    return matches[0]


@pytest.mark.parametrize("file", FILES)
def test_a_config_says_command_expected_numbers_and_hardware(file: str) -> None:
    assert command(file)
    if file.startswith("configs/tasks/"):  # any model is asked; tests/configs/test_tasks.py
        return
    assert "\nExpected" in docstring(file) and "\nHardware: " in docstring(file)


@pytest.mark.parametrize("file", FILES)
def test_a_config_builds(file: str) -> None:
    config = cli.load(CLASSES[command(file)], str(ROOT / file))
    if isinstance(config, PhasedExperiment) and config.phases:
        assert config.experiments(Path("runs/whole"))


@pytest.mark.parametrize("accelerator", presets.PRESETS)
@pytest.mark.parametrize("model", ["llama3_8b", "llama3_70b"])
def test_a_preset_is_a_config(model: str, accelerator: str) -> None:
    assert cli.load(Experiment, str(ROOT / f"configs/pretrain/{model}.py:{accelerator}"))
