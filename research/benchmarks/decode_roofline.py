"""The step of one token compiled for chips that need not be there: its bytes beside the least.

A step must read every weight that it multiplies by, and the keys and values of each row, once; with
few rows nothing else takes as long. The TPU compiler says how many bytes the program's operations
read and write: what is copied into a chip's fast memory first counts there and again.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from research import sharding
from research.benchmarks import graft_generate, harness
from research.generation import programs
from research.models.transformer import Transformer
from research.preflight.examine import prepare_environment
from research.runtime.accelerators import Topology, get_topology

GIB = 2**30


def measure(arguments: argparse.Namespace) -> harness.Results:
    """Prints and returns the figures of each topology, number of rows and type."""
    prepare_environment()
    results: harness.Results = {"shape": arguments.shape}
    tokens = arguments.prompt_tokens + arguments.new_tokens
    print(f"{arguments.shape}: a token behind {tokens:,} others in each row, on one chip")
    for name in arguments.topology:
        topology = get_topology(name if ":" in name else f"{name}:2x2")
        for dtype in arguments.dtypes:
            for rows in arguments.rows:
                settings = {"shape": arguments.shape, "dtype": dtype, "rows": rows}
                figures = _compile(settings, tokens, topology)
                key = f"{name}.{dtype}.{rows}"
                results |= {f"{key}.{what}": figure for what, figure in figures.items()}
                print(
                    f"  {name}, {dtype}, {rows} rows: {figures['least_bytes'] / GIB:.2f} GiB must "
                    f"be read, {figures['least_seconds'] * 1e3:.2f} ms: "
                    f"{rows / figures['least_seconds']:,.0f} tokens/s at most; the program moves "
                    f"{figures['program_bytes'] / GIB:.2f} GiB, of which they are "
                    f"{figures['share']:.0%}",
                    flush=True,
                )
    return results


def _compile(settings: Mapping[str, Any], tokens: int, topology: Topology) -> dict[str, float]:
    """Bytes and seconds of a step, by shapes and by the compiler."""
    mesh, rules = sharding.MeshConfig().make(topology.devices[:1]), sharding.RULES
    # the compiler counts the body of a scan once
    config = dataclasses.replace(graft_generate.model_config(settings), max_scan_layers=1)
    rows = settings["rows"]
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def place(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), tree
        )

    with sharding.mesh_context(mesh, rules):
        model = place(jax.eval_shape(lambda: Transformer(jax.random.key(0), config)))
        cache = place(jax.eval_shape(lambda model: model.empty_cache(rows, tokens), model))
        row = place(jax.ShapeDtypeStruct((rows,), jnp.int32))
        program = programs.advance.lower(model, row, row, None, cache.content).compile()
    analysis = program.cost_analysis() or {}
    program_bytes = float(analysis["bytes accessed"])
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model))
    if not config.tie_embeddings:  # a row of the table is looked up, and no more
        table = jax.tree.leaves(model.embedding.kernel)[0]
        weights -= table.size * table.dtype.itemsize
    keys = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache.content.layers))
    least = float(weights + keys)
    return {
        "least_bytes": least,
        "least_seconds": least / topology.accelerator.memory_bandwidth,
        "program_bytes": program_bytes,
        "share": least / program_bytes,
    }
