"""Where to begin on each accelerator: mesh, rematerialization, and the compiler's flags.

    graft preflight --config configs/pretrain/llama3_8b.py:v5p --topology v5p:4x4x4

All chips of a slice share the weights. Where memory is small, whole layers are computed again in
the backward pass; where it is large, matrix products are kept, which saves a fifth of the time.

`graft preflight` and `graft launch` set the flags for the version in `--topology`
(LIBTPU_INIT_ARGS, unless you set it). All but the last are those that MaxText publishes for its
runs on these chips: they gather weights while products are computed. The last one keeps the
compiler from gathering weights by summing arrays of zeros, which it does where one axis of the mesh
lies on several axes of the torus; it saves a quarter of a GiB for 8B parameters on v5p:4x4x4. The
flags were compiled with here, not timed. For TPU7x and GPUs the compiler's own choices stand.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict


class Preset(NamedTuple):
    """What to begin with on one accelerator."""

    # `config.mesh`
    mesh: dict[str, Any]
    # `config.model.remat`
    remat: str
    # flags of the TPU compiler
    flags: tuple[str, ...] = ()


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
PRESETS = {
    "v4": Preset(SHARED, "full", OVERLAP),
    "v5e": Preset(SHARED, "full", OVERLAP),
    "v5p": Preset(SHARED, "products", OVERLAP),
    "v6e": Preset(SHARED, "full", OVERLAP),
    "tpu7x": Preset(SHARED, "products"),
    "gpu": Preset(SHARED, "products"),
    "cpu": Preset(dict(data=-1), "none"),
}


def apply(config: ConfigDict, accelerator: str | None) -> ConfigDict:
    """Lays an accelerator's mesh and rematerialization over a config; None leaves it as it is.

    Raises:
      ValueError: no preset of that name.
    """
    if accelerator is None:
        return config
    if accelerator not in PRESETS:
        raise ValueError(f"no preset {accelerator!r}; there are {', '.join(PRESETS)}")
    config.mesh = PRESETS[accelerator].mesh
    config.model.remat = PRESETS[accelerator].remat
    return config


def flags(topology: str) -> str:
    """LIBTPU_INIT_ARGS for the version of a topology such as v5e:4x4."""
    preset = PRESETS.get(topology.partition(":")[0])
    return " ".join(preset.flags) if preset else ""
