"""Factorizations of a matrix, which starts and optimizers share."""

import jax
import jax.numpy as jnp


@jax.custom_batching.sequential_vmap
def svd(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[M,N] -> left [M,K], values [K] in falling order, right [K,N], where K is the shorter side.

    Layer after layer: several at once wait for each other for ever on a CPU of two cores, where
    what is read is quantised (jax 0.10.2).
    """
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    return left, values, right
