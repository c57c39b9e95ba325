"""The machine's own limit: the fastest large matrix product that JAX reaches in a type."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

# The second is the MLP of SmolLM2: a cache-friendly size is the fastest on some CPUs.
CPU_SIZES = ((2048, 2048, 2048), (1024, 576, 1536))
ACCELERATOR_SIZES = ((8192, 8192, 8192),)


def prepare(settings: Mapping[str, Any]):
    device = jax.devices()[0]
    dtype = jnp.dtype(settings["dtype"])
    sizes = CPU_SIZES if device.platform == "cpu" else ACCELERATOR_SIZES
    # sums in float32, as every accelerator keeps them and as CPUs with bfloat16 units do
    product = jax.jit(
        lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(dtype)
    )
    pairs = []
    for m, k, n in sizes:
        a, b = jnp.ones((m, k), dtype), jnp.ones((k, n), dtype)
        product(a, b).block_until_ready()
        pairs.append((2 * m * k * n, a, b))

    def run() -> float:
        """Seconds for 10^12 floating-point operations, at the faster size."""
        best = float("inf")
        end = time.perf_counter() + 0.3
        while time.perf_counter() < end:
            for flops, a, b in pairs:
                start = time.perf_counter()
                product(a, b).block_until_ready()
                best = min(best, (time.perf_counter() - start) / flops * 1e12)
        return best

    return {"device": f"{device.platform} {device.device_kind}", "jax": jax.__version__}, run
