"""Peak FLOP/s of devices, as published or measured."""

import time

import jax
import pytest

from research.runtime import accelerators


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 1153.5e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("TPU v4 lite", None),
        ("Radeon", None),
    ],
)
def test_peak_flops_by_device_kind(kind: str, peak: float | None) -> None:
    assert accelerators.peak_flops(kind) == peak


def test_cpu_peak_is_measured_once_whatever_the_virtual_devices() -> None:
    if jax.default_backend() != "cpu":
        pytest.skip("measures the CPU")
    start = time.monotonic()
    peak = accelerators.peak_flops_per_second()
    assert peak is not None and 1e9 < peak < 1e14
    assert accelerators.peak_flops_per_second(jax.devices()[:1]) == peak
    assert time.monotonic() - start < 10
