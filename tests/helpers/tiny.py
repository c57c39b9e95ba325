"""A model small enough to compile in a second, and batches for it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from research import methods
from research import step as stepping
from research.batch import Batch
from research.models.config import ModelConfig
from research.models.transformer import Transformer
from research.optim import schedules
from tests.helpers import rounding

CONFIG = ModelConfig(vocabulary=64, width=32, layers=3, heads=4, kv_heads=2, mlp_width=48)
# in a row, to a batch's logits and to a weight's gradient; also of the families in tests/methods
ROUNDINGS = rounding.forward_roundings(CONFIG)
GRADIENT_ROUNDINGS = rounding.gradient_roundings(CONFIG)


def config(**changes) -> ModelConfig:
    return dataclasses.replace(CONFIG, **changes)


def model(shape: ModelConfig = CONFIG, seed: int = 0) -> Transformer:
    return _copy(_model(shape, seed))


@functools.cache
def _model(shape: ModelConfig, seed: int) -> Transformer:
    return jax.jit(lambda key: Transformer(key, shape))(jax.random.key(seed))


def _copy(tree):
    """A copy, whose sites can be filled without changing the original."""
    return jax.tree.map(lambda leaf: leaf, tree)


def batch(rows: int = 8, length: int = 16, seed: int = 0, documents: int = 2) -> Batch:
    """Random tokens, `documents` in a row, uneven weights, padding in the last two columns."""
    random = np.random.default_rng(seed)
    tokens = random.integers(1, CONFIG.vocabulary, (rows, length + 1)).astype(np.int32)
    end = length - 2
    segments = np.minimum(np.arange(length) * documents // end, documents - 1) + 1
    positions = np.concatenate([np.arange(n) for n in np.bincount(segments[:end])[1:]])
    segments = np.where(np.arange(length) < end, segments, 0)
    positions = np.pad(positions, (0, length - end))
    weights = random.random((rows, length)) * (segments > 0)
    weights[0] *= 5  # a mean of means would show
    segments, positions = (
        np.broadcast_to(x, (rows, length)).astype(np.int32) for x in (segments, positions)
    )
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=weights.astype(np.float32),
        segments=segments,
        positions=positions,
    )


def hyper(
    names, rate=1e-2, steps=10, dropout=None, weight_decay=0.1, max_grad_norm=1.0
) -> stepping.Hyper:
    schedule = schedules.ScheduleConfig(learning_rate=rate, warmup=2)
    return stepping.Hyper(
        key=jax.random.key(7),
        schedule=schedules.Schedule.make(schedule, steps),
        learning_rate_multipliers=stepping.multipliers(
            (), names, names, "learning_rate_multipliers"
        ),
        weight_decay_multipliers=stepping.multipliers((), names, names, "decays"),
        weight_decay=np.float32(weight_decay),
        max_grad_norm=_float32_or_none(max_grad_norm),
        dropout=_float32_or_none(dropout),
        adapter_dropout=_float32_or_none(dropout),
    )


def _float32_or_none(number):
    return None if number is None else np.float32(number)


def attached(method, shape: ModelConfig = CONFIG, seed: int = 0) -> Transformer:
    """A model in the stacks that the method asks for, with the method attached."""
    return _copy(_attached(method, shape, seed))


def abstract(method, shape: ModelConfig = CONFIG) -> Transformer:
    """`attached` without arrays."""
    return jax.eval_shape(_maker(method, shape), jax.random.key(0), jax.random.key(1))


@functools.cache
def _attached(method, shape: ModelConfig, seed: int) -> Transformer:
    return jax.jit(_maker(method, shape))(jax.random.key(seed), jax.random.key(seed + 1))


def _maker(method, shape: ModelConfig):
    """A function of two keys that makes the model and attaches the method."""
    stacks = methods.derive_stacks(shape, method)
    return lambda key, attach: method.attach(Transformer(key, shape, stacks), attach)


def shaken(model, seed: int = 3, size: float = 0.1):
    """A copy with noise on every leaf, so that nothing is at its special start."""
    random = np.random.default_rng(seed)

    def add_noise(leaf):
        return leaf + size * random.normal(size=leaf.shape).astype(np.float32)

    return jax.tree.map(add_noise, model)


def logits(model, batch: Batch, context=None) -> jax.Array:
    """[B,S,V]."""
    hidden, _ = model.hidden(batch.tokens, batch.segments, batch.positions, batch.prefix, context)
    return model.logits(hidden, context)


def plain_logits(model) -> np.ndarray:
    """Logits of a row, one operation after another: two compiled programs may fuse and so round the
    same operations in two ways."""
    with jax.disable_jit():
        return np.asarray(logits(model, batch(rows=1)))


def check_documents_apart(forward, model) -> None:
    """Checks that each document of a packed row gives the same as alone."""
    rows = batch(rows=2, documents=2)
    out = np.asarray(forward(model, rows))
    assert out.shape[:2] == rows.tokens.shape
    for segment in (1, 2):
        columns = np.flatnonzero(rows.segments[0] == segment)
        alone = jax.tree.map(lambda x, columns=columns: x[:, columns], rows)
        alone.segments[...] = 1
        rounding.assert_close(out[:, columns], forward(model, alone), roundings=ROUNDINGS)


def log_probabilities(model, ids) -> np.ndarray:
    """[n,V] log-probabilities after each of n <= 24 tokens, by one full pass."""
    tokens = np.zeros((1, 24), np.int32)
    tokens[0, : len(ids)] = ids
    return np.asarray(_log_probabilities(model, tokens))[0, : len(ids)]


@jax.jit
def _log_probabilities(model, tokens):
    hidden, _ = model.hidden(tokens, jnp.ones_like(tokens), np.arange(tokens.shape[1])[None])
    return jax.nn.log_softmax(model.logits(hidden))
