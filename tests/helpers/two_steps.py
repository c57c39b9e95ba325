"""Two train steps of a loss on a tiny model: the same on any mesh, micro-batches and remat."""

import dataclasses
import functools

import jax
import numpy as np

from research import methods, sharding, tree
from research import step as stepping
from research.methods import Full
from research.optim.adamw import AdamW
from research.sharding import MeshConfig
from tests.helpers import rounding, tiny

train_step = jax.jit(stepping.train_step, static_argnames="step_config")


FULL = Full()


@functools.cache
def run(loss, make_batch, mesh=(1,), accumulation_steps=1, remat="none", method=FULL):
    """The metrics of two steps, and the last parameters.

    Args:
      make_batch: gives the batch of a loss.
    """
    rules = sharding.RULES
    devices = MeshConfig(*mesh).make(jax.devices()[: np.prod(mesh)])
    model = tiny.attached(method, tiny.config(remat=remat))
    names = methods.trainable(model, method)
    # a large epsilon: without it Adam turns rounding of tiny gradients into whole steps
    optimizer = AdamW(epsilon=1e-2)
    config = stepping.StepConfig(
        names, optimizer, loss=loss.without_numbers(), accumulation_steps=accumulation_steps
    )
    hyper = dataclasses.replace(tiny.hyper(names, dropout=0.1), loss=loss.numbers)
    batch = make_batch(loss)
    with sharding.mesh_context(devices, rules):
        state, lines = stepping.init_state(model, config), []
        batch = jax.device_put(batch, sharding.batch_sharding(devices, rules))
        for _ in range(2):
            state, metrics = train_step(state, batch, hyper, config)
            lines.append({name: float(value) for name, value in metrics.items()})
    return lines, {name: np.asarray(leaf) for name, leaf in tree.flatten(state.model).items()}


def assert_same_run(actual, expected):
    """Of two results of `run`: to rounding the same metrics and parameters, no step skipped."""
    for mine, others in zip(actual[0], expected[0], strict=True):
        assert mine.keys() == others.keys() and others["skipped"] == 0
        for name, value in others.items():
            # an answer's log-probability is a sum over its tokens, of which there are 5 at most
            check = functools.partial(rounding.assert_close, scale=max(1.0, abs(value)))
            check(mine[name], value, roundings=5 * tiny.ROUNDINGS, err_msg=name)
    count = 5 * tiny.GRADIENT_ROUNDINGS
    scale = rounding.moved(2, learning_rate=1e-2, epsilon=1e-2)
    for name, leaf in expected[1].items():
        rounding.assert_close(actual[1][name], leaf, roundings=count, scale=scale, err_msg=name)
