"""What lies in the host's memory between its uses changes no number."""

import json

import jax
import numpy as np
import pytest

from research.checkpoints.checkpointer import open_checkpoint
from research.experiment import CheckpointConfig
from research.models.config import ComputeConfig
from research.sharding import HOST, MeshConfig
from research.training.loop import train
from research.training.program import make_program
from research.training.session import Session
from tests.helpers import rounding, tiny, tiny_run

MOMENTS = (".*/(mu|nu)",)
MESH = MeshConfig(data=2, fsdp=2, tensor=2)


def losses(folder):
    return [json.loads(line)["loss"] for line in tiny_run.lines(folder)]


@pytest.mark.heavy
def test_offloaded_moments_and_layer_inputs_give_the_losses_of_those_on_devices(world, tmp_path):
    plain = world.experiment(6, mesh=MESH, compute=ComputeConfig(remat="full"))
    train(plain, tmp_path / "plain")
    settings = {"offload": MOMENTS, "compute": ComputeConfig(remat="offload")}
    saving = {"checkpoint": CheckpointConfig(every=3)}
    train(world.experiment(3, mesh=MESH, **settings, **saving), tmp_path / "run")
    train(world.experiment(6, mesh=MESH, **settings, **saving), tmp_path / "run")  # goes on
    ours, expected = losses(tmp_path / "run"), losses(tmp_path / "plain")
    rounding.assert_close(ours, expected, roundings=tiny_run.ROUNDINGS)
    # and the run goes on with its moments on the devices
    train(world.experiment(8, mesh=MESH, **settings | {"offload": ()}, **saving), tmp_path / "run")
    assert open_checkpoint(tmp_path / "run").step == 8


def test_moments_lie_with_the_host_between_steps(world):
    program = make_program(world.experiment(2, mesh=MESH, offload=MOMENTS), None)
    host_names = {name for name, where in program.shardings.items() if where.memory_kind == HOST}
    assert host_names and all(name.endswith(("/mu", "/nu")) for name in host_names)
    batch = jax.tree.map(np.asarray, tiny.batch(rows=8, length=32))
    with jax.set_mesh(program.mesh):
        step = program.compile(batch)
        own, base = Session().fresh_state(program)
        kinds = memory_kinds_of_moments(own)
        after, _ = step(own, base, program.place(batch), program.place_hyper())
    assert kinds == memory_kinds_of_moments(after) == {HOST}


def memory_kinds_of_moments(own):
    moments = [x for name, x in own.items() if name.startswith("optimizer/") and x.ndim > 1]
    return {x.sharding.memory_kind for x in moments}


def test_a_pattern_of_no_moment_is_refused(world):
    with pytest.raises(ValueError, match="offload: pattern 'model/.*' matches nothing; nearest"):
        make_program(world.experiment(2, offload=("model/.*",)), None)
