"""Runs with random adapters on the base, and what they hold."""

import jax

from research import sharding
from research.checkpoints import runs
from research.sharding import MeshConfig
from tests.helpers import tiny_run


def load(run):
    mesh = MeshConfig(data=1).make(jax.devices()[:1])
    return runs.load_model(run, mesh, sharding.RULES)


def save_adapters(world, tmp_path, *to_save):
    """Runs with random adapters on the base."""
    paths = [
        tiny_run.adapter(world.base, method, tmp_path / f"adapter{seed}", seed)
        for seed, method in enumerate(to_save)
    ]
    return [runs.open_run(path) for path in paths]


def read_weights(path):
    """A run's arrays by name, those of its base included."""
    run = runs.open_run(path)
    return run.read(*run.checksums())
