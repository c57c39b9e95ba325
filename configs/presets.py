"""What to begin with on each accelerator: mesh, rematerialisation, and flags of the compiler.

    graft preflight --config configs/pretrain/llama3_8b.py:v5p --topology v5p:4x4x4

Where memory is small, layers are computed again; where it is large, products are kept, which saves
a fifth of the time. Weights are shared by all chips of a slice. graft preflight and
graft launch set the flags for the version that they are asked for (LIBTPU_INIT_ARGS, unless you
set it). All but the last are those that MaxText publishes for its runs on these chips, for
gathering weights while products are computed. The last keeps the compiler from gathering weights by
summing arrays of zeros, as it does where one axis of a mesh lies on several of the torus: a quarter
of a GiB less for 8B parameters on v5p:4x4x4. They were compiled with here, not timed. For TPU7x and
GPUs the compiler's own choices stand.
"""

from typing import Any

from ml_collections import ConfigDict

OVERLAP = (
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
    "--xla_tpu_data_parallel_opt_different_sized_ops=true",
    "--xla_tpu_enable_async_collective_fusion=true",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "--xla_tpu_overlap_compute_collective_tc=true",
    "--xla_enable_async_all_gather=true",
    "--xla_tpu_prefer_async_allgather_to_allreduce=true",
)
SHARED = dict(data=1, fsdp=-1)
PRESETS: dict[str, dict[str, Any]] = {
    "v4": dict(mesh=SHARED, remat="full", flags=OVERLAP),
    "v5e": dict(mesh=SHARED, remat="full", flags=OVERLAP),
    "v5p": dict(mesh=SHARED, remat="products", flags=OVERLAP),
    "v6e": dict(mesh=SHARED, remat="full", flags=OVERLAP),
    "tpu7x": dict(mesh=SHARED, remat="products", flags=()),
    "gpu": dict(mesh=SHARED, remat="products", flags=()),
    "cpu": dict(mesh=dict(data=-1), remat="none", flags=()),
}


def apply(config: ConfigDict, accelerator: str | None) -> ConfigDict:
    """The config with an accelerator's mesh and rematerialisation; as it is for None.

    Raises:
      ValueError: no preset of that name.
    """
    if accelerator is None:
        return config
    if accelerator not in PRESETS:
        raise ValueError(f"no preset {accelerator!r}; there are {', '.join(PRESETS)}")
    config.mesh = PRESETS[accelerator]["mesh"]
    config.model.remat = PRESETS[accelerator]["remat"]
    return config


def flags(topology: str) -> str:
    """LIBTPU_INIT_ARGS for the version of a topology such as v5e:4x4."""
    return " ".join(PRESETS.get(topology.partition(":")[0], {}).get("flags", ()))
