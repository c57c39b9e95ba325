"""The decoder: leaves, stacks, masks, packing, padding, cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.batch import SHARED, Batch
from research.generation import decode
from research.losses.cross_entropy import CrossEntropy
from research.losses.sequence_chunks import summed_losses, token_losses
from research.models.config import ModelConfig
from research.models.transformer import Transformer
from research.training import cost
from tests.helpers import rounding, tiny

KEY = jax.random.key(0)
forward = jax.jit(tiny.logits)


def closed_form(c: ModelConfig) -> int:
    """Parameters of a Llama."""
    d, f, n = c.width, c.mlp_width, c.head_dim
    attention = d * (c.heads + 2 * c.kv_heads) * n + c.heads * n * d
    layer = attention + 3 * d * f + 2 * d
    return c.vocabulary * d * (1 if c.tie_embeddings else 2) + c.layers * layer + d


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_leaf_count_equals_the_closed_form_however_the_model_is_made(tie_embeddings):
    shape = tiny.config(tie_embeddings=tie_embeddings)

    def make(key):
        return Transformer(key, shape)

    models = {
        "eager": make(KEY),
        "jit": jax.jit(make)(KEY),
        "eval_shape": jax.eval_shape(make, KEY),
        "vmap": jax.tree.map(lambda leaf: leaf[0], jax.vmap(make)(jax.random.split(KEY, 2))),
    }
    for how, model in models.items():
        assert cost.count(model) == cost.parameter_count(shape) == closed_form(shape), how
        assert len(jax.tree.leaves(model)) == (12 if not tie_embeddings else 11), how


@pytest.mark.heavy
def test_grouping_changes_neither_start_nor_output():
    whole, batch = tiny.model(), tiny.batch()
    expected = forward(whole, batch)
    split = tiny.model(tiny.config(max_scan_layers=2))  # of three layers
    actual, leaves = (tree.unstack(tree.flatten(m)) for m in (split, whole))
    assert all(np.array_equal(actual[name], leaves[name]) for name in leaves)
    rounding.assert_close(forward(split, batch), expected, roundings=tiny.ROUNDINGS)


def test_packed_equals_unpacked():
    model, batch = tiny.model(), tiny.batch(rows=2, documents=2)
    logits = forward(model, batch)
    for segment in (1, 2):
        columns = np.flatnonzero(batch.segments[0] == segment)
        alone = jax.tree.map(lambda x, columns=columns: x[:, columns], batch)
        alone = dataclasses.replace(alone, segments=np.ones_like(alone.segments))
        expected = forward(model, alone)
        rounding.assert_close(logits[:, columns], expected, roundings=tiny.ROUNDINGS)


def test_padding_changes_nothing():
    model, batch = tiny.model(), tiny.batch(rows=2)
    longer = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, 7))), batch)
    length = batch.tokens.shape[1] - 2
    short, long = forward(model, batch), forward(model, longer)
    rounding.assert_close(short[:, :length], long[:, :length], roundings=tiny.ROUNDINGS)


def test_the_whole_document_of_a_prefix_attends_to_it_and_no_other():
    batch = tiny.batch(rows=1, documents=2)
    prefix = np.zeros_like(batch.tokens, bool)
    prefix[:, :4] = True
    with_prefix = dataclasses.replace(batch, prefix=prefix)
    edited = dataclasses.replace(with_prefix, tokens=batch.tokens.copy())
    edited.tokens[0, 3] += 1
    model = tiny.model()
    difference = np.abs(forward(model, edited) - forward(model, with_prefix)).max(axis=-1)[0]
    # an exact zero where it is not seen
    assert (difference[:7] > 1e-6).all() and (difference[7:14] == 0).all()


def test_every_document_attends_to_a_shared_segment():
    batch = tiny.batch(rows=1, documents=2)
    segments = batch.segments.copy()
    segments[:, :3] = SHARED
    shared = dataclasses.replace(batch, segments=segments)
    edited = dataclasses.replace(shared, tokens=batch.tokens.copy())
    edited.tokens[0, 0] += 1
    model = tiny.model()
    difference = np.abs(forward(model, edited) - forward(model, shared)).max(axis=-1)[0]
    # an exact zero where it is not seen
    assert (difference[:14] > 1e-7).all()


@pytest.mark.parametrize("windows", [(0,), (3, 0)])
def test_cached_decoding_equals_the_full_forward_pass(windows):
    model, b, s = tiny.model(tiny.config(windows=windows)), 2, 10
    batch = tiny.batch(rows=b, length=s + 2, documents=1)
    batch = jax.tree.map(lambda x: x[:, :s], batch)
    expected = forward(model, batch)
    cache = model.empty_cache(b, s + 3)
    step = jax.jit(
        lambda model, part, cache: model.hidden(
            part.tokens, part.segments, part.positions, None, None, cache.content, keep=True
        )
    )
    outputs = []
    for start, stop in ((0, 6), *((i, i + 1) for i in range(6, s))):
        part = jax.tree.map(lambda x, a=start, z=stop: x[:, a:z], batch)
        hidden, new = step(model, part, cache)
        cache = cache.append(new)
        outputs.append(model.logits(hidden))
    actual = np.concatenate(outputs, axis=1)
    rounding.assert_close(actual, expected, roundings=tiny.ROUNDINGS)


@pytest.mark.parametrize("chunk", [5, 16, 100])
@pytest.mark.parametrize("extras", [{}, {"label_smoothing": 0.1, "z_loss": 1e-2}])
def test_the_loss_in_chunks_equals_the_plain_one(chunk, extras):
    model, batch = tiny.model(), tiny.batch()

    def in_chunks(model):
        hidden, _ = model.hidden(batch.tokens, batch.segments, batch.positions)
        config = CrossEntropy(chunk=chunk, **extras)
        losses = token_losses(model, hidden, batch.targets, None, config)
        sums = summed_losses(model, hidden, batch.targets, batch.weights, None, config)
        same = jax.tree.map(lambda x, y: jnp.abs(jnp.sum(x * batch.weights) - y), losses, sums)
        return sums.loss, same

    def plain(model):
        logits = tiny.logits(model, batch)
        log = jax.nn.log_softmax(logits)
        smooth = extras.get("label_smoothing", 0)
        target = jax.nn.one_hot(batch.targets, logits.shape[-1])
        target = (1 - smooth) * target + smooth / logits.shape[-1]
        z = extras.get("z_loss", 0) * jax.nn.logsumexp(logits, -1) ** 2
        return jnp.sum((z - jnp.sum(target * log, -1)) * batch.weights)

    (ours, difference), ours_gradient = jax.jit(jax.value_and_grad(in_chunks, has_aux=True))(model)
    ours, theirs = (ours, ours_gradient), jax.jit(jax.value_and_grad(plain))(model)
    # of a sum over tokens that is as large as the loss or smaller
    assert max(jax.tree.leaves(difference)) < rounding.bound(batch.tokens.size, theirs[0])
    close = functools.partial(rounding.assert_close, roundings=tiny.GRADIENT_ROUNDINGS)
    jax.tree.map(close, ours, theirs)


def test_whole_logits_never_exist():
    shape = tiny.config(vocabulary=997)
    b, s = 4, 64
    batch = Batch(*(np.ones((b, s), kind) for kind in "iifii"))

    def loss(model):
        hidden, _ = model.hidden(batch.tokens, batch.segments, batch.positions)
        config = CrossEntropy(chunk=16)
        return summed_losses(model, hidden, batch.targets, batch.weights, None, config).loss

    abstract = jax.eval_shape(lambda key: Transformer(key, shape), KEY)
    text = jax.jit(jax.grad(loss)).lower(abstract).compile().as_text()
    assert f"{b},16,997]" in text or f"{b * 16},997]" in text
    assert f"{b},{s},997]" not in text and f"{b * s},997]" not in text


@pytest.mark.parametrize("remat", ["full", "products"])
def test_rematerialization_changes_no_gradient(remat):
    batch = tiny.batch()

    def total(model):
        return jnp.sum(jnp.tanh(tiny.logits(model, batch)))

    models = tiny.model(tiny.config(remat=remat)), tiny.model()
    ours, theirs = (tree.flatten(jax.jit(jax.grad(total))(model)) for model in models)
    for name in theirs:
        count = tiny.GRADIENT_ROUNDINGS
        rounding.assert_close(ours[name], theirs[name], roundings=count, err_msg=name)


@pytest.mark.heavy
def test_each_policy_of_rematerialization_keeps_less_than_the_one_before():
    shape = tiny.config(layers=8, width=64, mlp_width=192)
    tokens, segments, positions = jnp.zeros((3, 8, 64), jnp.int32)

    def temporaries(remat):
        model = jax.eval_shape(
            lambda key: Transformer(key, dataclasses.replace(shape, remat=remat)), KEY
        )

        def loss(model):
            return jnp.sum(model.hidden(tokens, segments, positions)[0])

        step = jax.jit(jax.grad(loss)).lower(model).compile()
        return step.memory_analysis().temp_size_in_bytes

    full, products, none = map(temporaries, ("full", "products", "none"))
    assert full < 0.7 * products and products < 0.8 * none


def test_bfloat16_compute_keeps_float32_weights_and_is_near():
    model, batch = tiny.model(), tiny.batch()
    half = tiny.model(tiny.config(compute_dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    # the same sums; only what goes into products is rounded to bfloat16, some dozen times a layer
    count = 3 * 12
    actual, expected = forward(half, batch), forward(model, batch)
    rounding.assert_close(actual, expected, roundings=count, unit=rounding.BFLOAT16)


def test_a_text_longer_than_learned_positions_is_refused():
    model = tiny.model(tiny.config(learned_positions=16))
    assert tiny.logits(model, tiny.batch(length=16)).shape[1] == 16
    with pytest.raises(ValueError, match="17 tokens do not fit the model's 16 learned positions"):
        tiny.logits(model, tiny.batch(length=17))
    with pytest.raises(ValueError, match="17 tokens do not fit"):
        next(decode.stream(model, [[1, 2, 3]], 14, end_id=0))


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="4 heads do not share 3 key heads"):
        ModelConfig(64, 32, 2, 4, 3, 48)
    with pytest.raises(ValueError, match="unknown attention 'flsh'"):
        tiny.config(attention="flsh")
