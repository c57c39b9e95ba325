"""OFT's rotations; tests/methods/test_invariants.py asks what every method must pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.methods.oft import OFT, Rotation
from research.models.layers import Linear
from research.models.sites import Context, Weight
from tests.helpers import rounding, tiny


@pytest.fixture
def rotation():
    """Of 12 inputs in blocks of 4, away from its start."""
    delta = Rotation(Weight(jnp.zeros((12, 5))), ("embed", "mlp"), 4)
    return tiny.shaken(delta, size=1.0)


def test_blocks_are_orthogonal_and_of_determinant_one(rotation):
    blocks = np.asarray(rotation.change()) + np.eye(4)
    # a solution by elimination, a product and a determinant of 4 x 4, entries of size 1
    expected = np.tile(np.eye(4), (3, 1, 1))
    rounding.assert_close(blocks @ blocks.swapaxes(1, 2), expected, roundings=4 * 4)
    rounding.assert_close(np.linalg.det(blocks), 1, roundings=2 * 4 * 4)
    assert np.abs(blocks - np.eye(4)).max() > 0.5


def test_it_trains_half_of_a_block_without_its_diagonal(rotation):
    assert rotation.skew.shape == (3, 4 * 3 // 2)


def test_it_is_the_cayley_transform_of_its_entries(rotation):
    rows, columns = np.triu_indices(4, 1)
    skew = np.zeros((3, 4, 4))
    skew[:, rows, columns] = rotation.skew[...]
    skew -= skew.swapaxes(1, 2)
    expected = (np.eye(4) + skew) @ np.linalg.inv(np.eye(4) - skew)
    rounding.assert_close(rotation.change() + np.eye(4), expected, roundings=4 * 4)


def test_lengths_stay_as_they_are(rotation):
    x = jax.random.normal(jax.random.key(0), (2, 3, 12))
    output = rotation.before(x, Context())
    norms = (np.linalg.norm(array, axis=-1) for array in (x, output))
    rounding.assert_close(*norms, roundings=4 * 4 + 12)
    assert np.abs(output - x).max() > 0.5


def test_a_linear_makes_no_second_product_with_its_weight():
    def flops(linear):
        x = jax.ShapeDtypeStruct((1, 64, 256), jnp.float32)
        compiled = jax.jit(lambda x: linear(x, Context())).lower(x).compile()
        return compiled.cost_analysis()["flops"]

    linear = Linear(jax.random.key(0), 256, 256, ("embed", "mlp"))
    plain = flops(linear)
    linear.site["oft"] = Rotation(linear.weight(), linear.axes, 8)
    assert 2 * 64 * 256 * 8 < flops(linear) - plain < 0.1 * plain


def test_blocks_that_do_not_divide_the_inputs_name_the_place():
    with pytest.raises(ValueError, match=r"oft at layers/\S+: block_size 5 does not divide 32 inp"):
        tiny.abstract(OFT(block_size=5))
