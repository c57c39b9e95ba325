"""A run that was stopped, for the tests of its folder."""

import shutil

import pytest

from research.experiment import CheckpointConfig
from research.training.loop import train


@pytest.fixture(scope="session")
def stopped(world, tmp_path_factory):
    """A run that ended at step 4, with steps 2 and 4 saved; its experiment for more steps."""

    def experiment(steps):
        return world.experiment(steps, checkpoint=CheckpointConfig(every=2, keep_last=2))

    folder = tmp_path_factory.mktemp("stopped") / "run"
    train(experiment(4), folder)
    shutil.rmtree(folder / "model")
    (folder / "summary.json").unlink()
    return folder, experiment


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of it, and the experiment."""
    shutil.copytree(stopped[0], tmp_path / "run")
    return tmp_path / "run", stopped[1]
