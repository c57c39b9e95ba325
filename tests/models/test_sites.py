"""The site protocol serves what methods need beyond linears: prompts and prefixes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from research.generation import decoder
from research.models.sites import Context, Delta
from tests.helpers import rounding, tiny


class Prompt(Delta):
    """P learnt vectors in front of every row."""

    def __init__(self, length, width):
        self.vectors = nnx.Param(jax.random.normal(jax.random.key(5), (length, width)))

    def __call__(self, tokens, y, weight, context):
        vectors = jnp.broadcast_to(self.vectors[...], (y.shape[0], *self.vectors.shape))
        return jnp.concatenate([vectors, y], axis=1)


class Prefix(Delta):
    """P learnt keys and values in front of every row's own."""

    def __init__(self, key, length, heads, size):
        self.pair = nnx.Param(jax.random.normal(key, (2, length, heads, size)))

    def __call__(self, x, y, weight, context):
        front = jnp.broadcast_to(self.pair[...][:, None], (2, y[0].shape[0], *self.pair.shape[1:]))
        return tuple(jnp.concatenate(two, axis=1) for two in zip(front, y, strict=True))


def with_prompt(length=3):
    model = tiny.model()
    model.embedding.site["prompt"] = Prompt(length, tiny.CONFIG.width)
    return model


@pytest.mark.heavy
def test_prompt_is_seen_by_every_document_of_a_packed_row():
    model, packed = with_prompt(), tiny.batch(rows=2, documents=2)
    tiny.check_documents_apart(tiny.logits, model)
    # far above rounding
    assert np.abs(tiny.logits(model, packed) - tiny.logits(tiny.model(), packed)).max() > 1e-2


def test_prompt_and_prefix_work_with_the_cache():
    model = with_prompt()
    keys = jax.random.split(jax.random.key(1), tiny.CONFIG.layers)
    for stack in model.layers.values():
        stack.attention.site["prefix"] = jax.vmap(
            lambda key: Prefix(key, 2, tiny.CONFIG.kv_heads, tiny.CONFIG.head_dim)
        )(keys)
    assert decoder.prompt_length(model) == 3
    batch = tiny.batch(rows=2, documents=1)
    batch = jax.tree.map(lambda x: x[:, :9], batch)
    expected = tiny.logits(model, batch)
    cache = model.empty_cache(2, 9 + 3)
    outputs = []
    for start, stop in ((0, 7), (7, 8), (8, 9)):
        part = jax.tree.map(lambda x, a=start, z=stop: x[:, a:z], batch)
        place = part.positions + (3 if start else 0)  # positions restart after the prompt
        hidden, new = model.hidden(
            part.tokens, part.segments, place, None, None, cache.content, first=not start, keep=True
        )
        cache = cache.append(new)
        outputs.append(model.logits(hidden))
    actual = np.concatenate(outputs, axis=1)
    rounding.assert_close(actual, expected, roundings=tiny.ROUNDINGS)


def test_dropout_depends_on_the_row_key_and_the_place_alone():
    x = jnp.ones((4, 5, 6))
    keys = jax.random.split(jax.random.key(0), 4)
    context = Context(keys=keys, dropout=jnp.float32(0.5))
    whole = context.at("here").drop(x, context.dropout)
    part = Context(keys=keys[2:], dropout=jnp.float32(0.5)).at("here").drop(x[2:], context.dropout)
    assert np.array_equal(whole[2:], part)
    assert not np.array_equal(whole, context.at("there").drop(x, context.dropout))
    assert set(np.unique(whole)) == {0.0, 2.0}
    assert np.array_equal(context.drop(x, None), x)


def test_dropout_without_random_keys_is_refused():
    with pytest.raises(ValueError, match="a dropout rate needs random keys"):
        Context(dropout=jnp.float32(0.5)).drop(jnp.ones((2, 3)), jnp.float32(0.5))
