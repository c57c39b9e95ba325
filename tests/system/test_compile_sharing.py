"""Runs that differ in numbers or in phase alone share one compiled program, also on disk."""

import types

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from research import sharding
from research import step as stepping
from research.checkpoints import runs
from research.data.pipeline import Pipeline
from research.data.token_cache import default_cache
from research.methods import LoRA
from research.optim.schedules import ScheduleConfig
from research.text import tokenizer
from research.training.loop import train
from research.training.program import make_program
from tests.helpers import tiny_run


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tiny_run.world(tmp_path_factory.getbasetemp())
    assert world.base.is_dir()  # trained before the cache is another one
    return world


@pytest.fixture
def cached(tmp_path):
    """-> the entries of a fresh cache on disk that hold a train step."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path / "programs"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    switch(settings)
    yield lambda: sorted(p.name for p in (tmp_path / "programs").glob("jit_train_step-*-cache"))
    switch(before)


def switch(settings):
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def forget(monkeypatch):
    """Makes the step another function of the same code: JAX finds it on disk, not in memory."""
    step = stepping.train_step

    def run():
        again = types.FunctionType(step.__code__, step.__globals__, step.__name__)
        monkeypatch.setattr(stepping, "train_step", again)

    return run


@pytest.fixture
def compile_step(world, forget):
    """Compiles what a run of the experiment would compile, and nothing else."""

    def run(experiment):
        forget()
        base = runs.open_run(experiment.init_from) if experiment.init_from else None
        program = make_program(experiment, base)
        run_tokenizer = tokenizer.load(world.folder / "tokenizer.json")
        batch = Pipeline(experiment.data, run_tokenizer, default_cache()).batch(0)
        with sharding.mesh_context(program.mesh, experiment.sharding_rules):
            program.compile(batch)

    return run


def test_pretraining_and_full_tuning_and_two_rates_share_one_entry(
    world, cached, compile_step, forget, tmp_path
):
    compile_step(world.experiment(30))
    first = cached()
    assert len(first) == 1
    tuning = world.tuning(7, schedule=ScheduleConfig(3e-4, "constant", final_share=0.0), seed=3)
    assert tuning.data.objective != world.data().objective
    compile_step(tuning)
    assert cached() == first
    numbers = {
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "learning_rate_rules": ((r"layers/.*", 0.5),),
    }
    compile_step(world.experiment(30, schedule=ScheduleConfig(1.0, "constant"), **numbers))
    assert cached() == first
    forget()
    train(tuning, tmp_path / "never", dry_run=True)  # and that is what the program uses
    assert cached() == first


@pytest.mark.heavy
def test_two_lora_scales_and_rates_share_one_entry_and_two_ranks_do_not(
    world, cached, compile_step
):
    def lora(rate, **method):
        return world.tuning(4, method=LoRA(**method), schedule=ScheduleConfig(rate, "constant"))

    compile_step(lora(1e-3, rank=2, alpha=4.0))
    first = cached()
    assert len(first) == 1
    compile_step(lora(1e-2, rank=2, alpha=64.0))
    assert cached() == first
    compile_step(lora(1e-2, rank=3, alpha=4.0))
    assert len(cached()) == 2
