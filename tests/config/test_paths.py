"""Paths of configs: found by their end, and values set there."""

import dataclasses

import pytest

from research.config import paths
from research.experiment import Experiment


@pytest.mark.parametrize(
    "name, path",
    [
        ("learning_rate", "schedule.learning_rate"),
        ("schedule.learning_rate", "schedule.learning_rate"),
        ("rank", "method.rank"),
        ("seed", "seed"),
        ("data.seed", "data.seed"),
        ("mlp_width", "model.mlp_width"),
        ("data.sources[0].weight", "data.sources[0].weight"),
        # an older name, as configs on disk may have it
        ("most_skipped", "max_skipped"),
    ],
)
def test_a_path_is_found_by_its_end(name, path):
    if name == "mlp_width":  # the prefix method has one too
        with pytest.raises(ValueError, match="several keys: model.mlp_width, method.mlp_width"):
            paths.full_path(Experiment, name)
        return
    assert paths.full_path(Experiment, name) == path


def test_a_key_that_no_config_has_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"'learning_rte'; did you mean schedule.learning_rate\?"):
        paths.full_path(Experiment, "learning_rte")


def test_values_are_set_and_checked(world):
    experiment = world.experiment(4)
    changed = paths.replace(
        experiment, {"schedule.learning_rate": 0.5, "data.sources[0].weight": 2.0}
    )
    assert changed.schedule.learning_rate == 0.5 and changed.data.sources[0].weight == 2.0
    assert dataclasses.replace(changed, schedule=experiment.schedule, data=experiment.data) == (
        experiment
    )
    with pytest.raises(ValueError, match=r"config.steps: .* got -1"):
        paths.replace(experiment, {"steps": -1})
    with pytest.raises(ValueError, match="is no path"):
        paths.replace(experiment, {"steps..x": 1})
