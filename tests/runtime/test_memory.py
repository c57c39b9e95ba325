"""A step that does not fit is refused before anything is made."""

from pathlib import Path

import jax
import numpy as np
import pytest

from research import sharding, tree
from research.data import token_cache
from research.data.pipeline import Pipeline
from research.runtime import memory
from research.runtime.memory import StepMemory
from research.text import tokenizer
from research.training.loop import train
from research.training.program import make_program
from tests.helpers import tiny


def test_arguments_are_the_state_the_batch_and_the_numbers(world):
    experiment = world.experiment(3)
    program = make_program(experiment, None)
    run_tokenizer = tokenizer.load(experiment.tokenizer)
    data = Pipeline(
        experiment.data, run_tokenizer, token_cache.default_cache(), program.model_config.vocabulary
    )
    batch = data.batch(0)
    with sharding.mesh_context(program.mesh, experiment.sharding_rules):
        plan = StepMemory.of(program.compile(batch))

    def size(x):
        return x.size * x.dtype.itemsize

    # replicated state, one row a device; a few numbers beside
    state = sum(size(x) for x in tree.flatten(program.state_shapes).values())
    rows = sum(size(x) for x in jax.tree.leaves(batch)) / jax.device_count()
    assert state + rows <= plan.arguments < state + rows + 2000
    assert plan.outputs < 2000  # the state's buffers are donated
    assert plan.temporaries > 0


def test_a_step_that_does_not_fit_is_refused_before_anything_is_written(
    world, tmp_path, monkeypatch
):
    monkeypatch.setattr(memory, "free_bytes", lambda: 1000)
    with pytest.raises(ValueError, match=r"the step needs .* GiB a device.*compute.remat=full"):
        train(world.experiment(3), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_what_the_compiler_finds_too_large_is_said_in_a_line(world, monkeypatch):
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 99 GiB of 16 GiB\nbuffers: ...")

    class Step:
        def lower(self, *_):
            return Lowered()

    program = make_program(world.experiment(3), None)
    monkeypatch.setattr(jax, "jit", lambda *_, **__: Step())
    with pytest.raises(ValueError, match=r"does not fit the devices' memory: .* of 16 GiB$"):
        program.compile(tiny.batch())


def test_free_memory_is_known_here_and_shared_between_devices():
    free = memory.free_bytes()
    assert free is not None and free > 2**20
    if jax.default_backend() == "cpu":
        assert free * jax.local_device_count() < 2**46


def test_peak_memory_covers_what_was_held() -> None:
    if jax.local_devices()[0].memory_stats():
        pytest.skip("the device has memory of its own")
    size = 64 * 2**20
    before = memory.peak_memory_bytes()
    arrays = [np.ones(size, np.uint8) for _ in range(1 + before // size // 4)]
    status = Path("/proc/self/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0]) * 1024
    assert memory.peak_memory_bytes() >= resident > sum(array.nbytes for array in arrays)
