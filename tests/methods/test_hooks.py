"""What a method may do in a step beside attaching: a memory, a penalty, a change of weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import methods, tree
from research import step as stepping
from research.data.config import DataConfig
from research.data.sources import JsonlConfig
from research.experiment import Experiment
from research.methods import AdaLoRA, Bank, Full, LoRA, Method, Partial, Several
from research.methods.l2_sp import L2SP
from research.optim.adamw import AdamW
from research.training.program import make_program
from tests.helpers import rounding, tiny
from tests.methods.cases import CASES

train_step = jax.jit(stepping.train_step, static_argnames="step_config")


def state_of(method, model=None):
    model = model or tiny.attached(method)
    plan = stepping.StepConfig(
        methods.trainable(model, method),
        AdamW(),
        method=method if method.has_hooks else None,
    )
    return stepping.init_state(model, plan), plan


def gradients_after(state, plan, batch, **hyper):
    """The gradients that a step gave to Adam, from its first moment, and the step's metrics."""
    numbers = tiny.hyper(plan.trainable, max_grad_norm=None, weight_decay=0.0, **hyper)
    new, metrics = train_step(state, batch, numbers, plan)
    slopes = {n: leaf.mu / (1 - plan.optimizer.b1) for n, leaf in new.optimizer.items()}
    return slopes, metrics, new


def mean_loss(model, batch):
    losses = stepping.forward(model, batch, None, stepping.CrossEntropy())
    return jnp.sum(losses.loss * batch.weights) / jnp.sum(batch.weights)


def moved_from_start(method):
    """A state whose weights are no longer those that the method remembers."""
    state, plan = state_of(method)
    return dataclasses.replace(state, model=tiny.shaken(state.model, size=0.02)), plan


@pytest.mark.parametrize(
    "method",
    [L2SP(strength=0.3), Several(of=(L2SP((".*norm.*",), strength=0.3), LoRA(rank=2)))],
    ids=["all", "norms beside lora"],
)
def test_l2_sp_is_the_gradient_of_the_loss_with_its_penalty(method):
    state, plan = moved_from_start(method)
    before, batch = tree.flatten(state_of(method)[0].model), tiny.batch()
    slopes, metrics, _ = gradients_after(state, plan, batch)
    trainable, frozen = tree.partition(state.model, plan.trainable)
    anchored = [name for name in trainable if not tree.is_attached(name)]
    assert 0 < len(anchored) < len(trainable) or isinstance(method, L2SP)

    @jax.jit
    @jax.value_and_grad
    def loss(trainable):
        distance = sum(jnp.sum((trainable[name] - before[name]) ** 2) for name in anchored)
        return mean_loss(tree.merge(state.model, trainable, frozen), batch) + 0.15 * distance

    value, expected = loss(trainable)
    rounding.assert_close(metrics["loss"], value, roundings=tiny.ROUNDINGS)
    assert float(metrics["penalty"]) > 1e-2
    assert set(slopes) == set(expected)
    for name, slope in expected.items():
        rounding.assert_close(slopes[name], slope, roundings=tiny.GRADIENT_ROUNDINGS, err_msg=name)


def test_what_a_method_remembers_stays_as_it_was():
    state, plan = moved_from_start(L2SP())
    _, _, new = gradients_after(state, plan, tiny.batch())
    assert set(new.memory) == set(state.memory) and len(new.memory) == len(plan.trainable) + 1
    assert all(np.array_equal(new.memory[name], leaf) for name, leaf in state.memory.items())


def test_a_method_without_hooks_leaves_the_step_as_it_is():
    for method in (*(case.method for case in CASES.values()), Full(), Partial()):
        program = make_program(experiment(method), None)
        assert method.has_hooks == bool(program.step_config.method)
        if not method.has_hooks:
            assert program.state_shapes.memory == {}


@pytest.mark.parametrize("method", [L2SP(), CASES["adalora"].method], ids=lambda m: m.kind)
def test_runs_that_differ_in_a_hooks_numbers_share_a_program(method):
    numbers = dict.fromkeys(method.array_fields, 0.7)
    programs = [
        make_program(experiment(m), None) for m in (method, dataclasses.replace(method, **numbers))
    ]
    assert programs[0].signature == programs[1].signature
    assert programs[0].step_config.method is not None


@dataclasses.dataclass(frozen=True)
class Spoiled(Method):
    """Adjusts weights to something that is not finite, and forgets."""

    kind: str = "spoiled"
    has_hooks = True
    trains = ((".*", True),)

    def memory(self, trainable):
        return {"spoiled/count": jnp.zeros(())}

    def penalty(self, trainable, memory):
        return jnp.where(memory["spoiled/count"] > 0, jnp.inf, 0.0)

    def adjust(self, trainable, gradients, memory, step):
        halves = jax.tree.map(lambda leaf: leaf / 2, trainable)
        return halves, {"spoiled/count": memory["spoiled/count"] + 1}


def test_weights_are_adjusted_after_the_optimizer_and_not_in_a_step_that_is_skipped():
    state, plan = state_of(Spoiled())
    batch, hyper = tiny.batch(), tiny.hyper(plan.trainable)
    plain, _ = train_step(state, batch, hyper, dataclasses.replace(plan, method=None))
    first, metrics = train_step(state, batch, hyper, plan)
    assert int(metrics["skipped"]) == 0 and float(first.memory["spoiled/count"]) == 1
    for name, leaf in tree.flatten(plain.model).items():
        actual = tree.flatten(first.model)[name]
        rounding.assert_close(actual, leaf / 2, roundings=tiny.GRADIENT_ROUNDINGS, scale=0.1)
    second, metrics = train_step(first, batch, hyper, plan)
    assert int(metrics["skipped"]) == 1 and int(second.step) == 2
    for part in ("model", "memory", "optimizer"):
        old, now = (jax.tree.leaves(getattr(s, part)) for s in (first, second))
        assert all(np.array_equal(a, b) for a, b in zip(old, now, strict=True))


def test_what_takes_part_in_the_step_is_in_no_bank():
    @dataclasses.dataclass(frozen=True)
    class Hooked(LoRA):
        has_hooks = True

    with pytest.raises(ValueError, match="lora takes part in the step or starts from data"):
        Bank(of=Hooked(rank=2), names=("a", "b"))


def experiment(method):
    data = DataConfig((JsonlConfig("none", "none"),), sequence_length=16, batch_size=8)
    shape = tiny.config(tie_embeddings=False)
    return Experiment(steps=20, model=shape, tokenizer="none", data=data, method=method)


def test_an_adalora_that_would_not_end_at_its_rank_is_refused():
    with pytest.raises(ValueError, match="prune_until 21 is over the run's 20 steps"):
        make_program(experiment(AdaLoRA(21)), None)
    with pytest.raises(ValueError, match="prune_from 9 is not before prune_until 9"):
        AdaLoRA(9, prune_from=9)
    with pytest.raises(ValueError, match="target_rank 4 is not less than rank 4: nothing"):
        AdaLoRA(9, rank=4, target_rank=4)
