"""One config lies on any number of slices: a mesh is that of one, and slices are its replicas."""

import dataclasses

import jax
import pytest

from research.sharding import MeshConfig, count_slices


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh asks of a device that is not there."""

    id: int
    platform: str
    slice_index: int
    device_kind: str = "made up"


def devices(platform, count=8, slices=2):
    return [Device(n, platform, n * slices // count) for n in range(count)]


@pytest.mark.parametrize(
    ("mesh", "one", "four"),
    [
        (MeshConfig(data=1, fsdp=-1), (1, 8, 1, 1), (4, 8, 1, 1)),
        (MeshConfig(), (8, 1, 1, 1), (32, 1, 1, 1)),
        (MeshConfig(data=2, fsdp=2, sequence=2), (2, 2, 2, 1), (8, 2, 2, 1)),
        (MeshConfig(data=-1, fsdp=2, tensor=4), (1, 2, 1, 4), (4, 2, 1, 4)),
    ],
)
def test_slices_are_replicas_of_the_mesh_of_one(mesh, one, four):
    assert mesh.sizes(8) == one
    assert mesh.sizes(32, 4) == four


def test_a_mesh_that_does_not_fit_a_slice_is_refused():
    with pytest.raises(ValueError, match=r"fsdp=8 tensor=1 does not fit 8 devices in 2 slices"):
        MeshConfig(data=1, fsdp=8).sizes(8, 2)
    with pytest.raises(ValueError, match=r"fsdp=3 tensor=1 does not fit 8 devices in 2 slices"):
        MeshConfig(data=-1, fsdp=3).sizes(8, 2)


def test_slices_are_those_of_tpus_and_hosts_of_gpus_share_weights():
    assert count_slices(devices("tpu", slices=4)) == 4
    assert count_slices(jax.devices()) == 1
    hosts = devices("gpu")
    mesh = MeshConfig(data=1, fsdp=-1, tensor=2).make(hosts)
    assert mesh.devices.shape == (1, 4, 1, 2)
    # neighbours on the mesh are neighbours on a host
    assert all(a.slice_index == b.slice_index for a, b in mesh.devices.reshape(-1, 2))
