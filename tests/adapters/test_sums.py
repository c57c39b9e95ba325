"""Weighted sums of saved adapters."""

import jax
import numpy as np
import pytest

from research import methods
from research.adapters import sums
from research.checkpoints import runs
from research.methods import IA3, Bottleneck, LoRA
from research.models.sites import Context
from research.training.loop import train
from tests.adapters.saved import load, save_adapters
from tests.helpers import rounding

SUMMED = {
    "lora": (LoRA(rank=2), LoRA(rank=4, alpha=3.0)),
    "lora-ranks": (LoRA(rank=2, ranks=((r".*/up", 1),)), LoRA(rank=2, ranks=((r".*/up", 3),))),
    "pissa": (LoRA(rank=2, start="pissa"), LoRA(rank=2)),
    "ia3": (IA3(), IA3()),
    "bottleneck": (Bottleneck(width=2), Bottleneck(width=4, scale=2.0)),
    "lora-full": (
        LoRA(rank=12, ranks=((r".*/up", 3),)),
        LoRA(rank=9, ranks=((r".*/up", 4),)),
    ),  # the width is 16
}


@pytest.mark.heavy
def test_a_sum_is_asked_as_what_it_is_a_sum_of(world, tmp_path):
    train(world.tuning(1, method=LoRA(rank=2)), tmp_path / "run")
    run = runs.open_run(tmp_path / "run")
    sums.add([(0.5, run), (0.3, run)], tmp_path / "sum")
    experiment = runs.open_run(tmp_path / "sum").experiment
    assert experiment is not None and experiment.data.objective.kind == "supervised"


@pytest.mark.heavy
@pytest.mark.parametrize("name", SUMMED)
def test_a_weighted_sum_is_linear_in_what_adapters_do(world, name, tmp_path):
    first, second = save_adapters(world, tmp_path, *SUMMED[name])
    sums.add([(0.7, first), (-0.4, second)], tmp_path / "sum")
    total = load(runs.open_run(tmp_path / "sum"))
    models = [load(run) for run in (first, second)]
    key = jax.random.key(5)
    count = 0
    modules = [dict(methods.places(model, *methods.PLACES)) for model in (total, *models)]
    for place, module in modules[0].items():
        delta = module.site.get(added_name := SUMMED[name][0].adapter)
        if delta is None:
            continue
        weight = methods.weight_of(total, module)
        inputs = 16 if weight is None else weight.kernel.shape[-2]
        outputs = 16 if weight is None else weight.kernel.shape[-1]
        x = jax.random.normal(jax.random.fold_in(key, count), (1, 3, inputs))
        y = jax.random.normal(jax.random.fold_in(key, 99), (1, 3, outputs))

        def does(delta, x=x, y=y):
            one = jax.tree.map(lambda leaf: leaf[0], delta)
            return one(x, y, None, Context()) - y

        parts = [m[place].site[added_name] for m in modules[1:]]
        expected = 0.7 * does(parts[0]) - 0.4 * does(parts[1])
        # sums over inputs, rank and parts, of numbers as large as what they are added to
        scale = np.abs(y).max()
        rounding.assert_close(does(delta), expected, roundings=32 + 8 + 2, scale=scale)
        count += 1
    assert count
