"""Soups: weighted means of whole models that were tuned on one."""

import dataclasses

import numpy as np
import pytest

from research.adapters import soups
from research.checkpoints import runs
from research.commands import adapters as command
from research.methods import Full, LoRA
from research.training.loop import train
from tests.adapters.saved import read_weights


@pytest.fixture(scope="module")
def pair(world, tmp_path_factory):
    """Two full tunes of the base, one longer than the other."""
    folders = [tmp_path_factory.mktemp("soups") / name for name in ("one", "two")]
    for steps, folder in enumerate(folders, start=1):
        train(world.tuning(steps, method=Full()), folder)
    return folders


def test_a_soup_is_the_mean_of_its_models_and_the_start_is_one_of_them(world, pair, tmp_path):
    one, two = map(str, pair)
    soup = tmp_path / "soup"
    line = ["add", "--from", f"0.5={one}", "--from", f"0.5={two}", "--out", str(soup)]
    command.main(line)
    weights = [read_weights(path) for path in (one, two, world.base, soup)]
    differs = 0
    for name, mean in weights[3].items():
        a, b = weights[0][name], weights[1][name]
        np.testing.assert_array_equal(mean, np.float32(0.5) * a + np.float32(0.5) * b, name)
        differs += not np.array_equal(a, b)
    assert differs > 10  # the two did not learn the same
    pair_of_runs = [(weight, runs.open_run(path)) for weight, path in ((1, one), (1, two))]
    soups.add([*pair_of_runs, (-1, runs.open_run(world.base))], tmp_path / "sum")
    for name, total in read_weights(tmp_path / "sum").items():
        a, b, start = (each[name] for each in weights[:3])
        np.testing.assert_array_equal(total, a + b - start, name)
    # and is a model that goes on
    assert runs.open_run(soup).fingerprint != runs.open_run(one).fingerprint
    again = [(0.5, runs.open_run(soup)), (0.5, runs.open_run(two))]
    soups.add(again, tmp_path / "of a soup")
    train(world.tuning(1, method=LoRA(rank=2), init_from=str(soup)), tmp_path / "tuned")


def test_what_does_not_go_together_is_refused_and_nothing_is_written(world, pair, tmp_path):
    one, two = map(runs.open_run, pair)
    train(world.experiment(1), tmp_path / "other")
    train(world.tuning(1, method=LoRA(rank=2)), tmp_path / "adapter")
    other = runs.open_run(tmp_path / "other")
    with pytest.raises(ValueError, match="sum to 1, not to 1.2"):
        soups.add([(0.7, one), (0.5, two)], tmp_path / "out")
    with pytest.raises(
        ValueError, match="tuned on one model: .*one.* from [0-9a-f]+, .*other.* from random"
    ):
        soups.add([(0.5, one), (0.5, other)], tmp_path / "out")
    with pytest.raises(ValueError, match="not an adapter of a base such as elsewhere"):
        runs.open_run(pair[0], "elsewhere")  # it would be passed over
    line = ["add", "--from", f"0.5={pair[0]}", "--from", f"0.5={tmp_path / 'adapter'}"]
    with pytest.raises(SystemExit, match="is a whole model, not an adapter of a base"):
        command.main([*line, "--out", str(tmp_path / "out")])
    eight_bits = dataclasses.replace(one.model, storage=((".*", "int8"),))
    with pytest.raises(ValueError, match="one.* is stored as int8: a mean is of weights in float"):
        soups.add([(1.0, dataclasses.replace(one, model=eight_bits))], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    soups.add([(1.0, one)], tmp_path / "out")
    with pytest.raises(FileExistsError):
        soups.add([(0.5, one), (0.5, two)], tmp_path / "out")
