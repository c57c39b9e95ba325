"""Settings that must stand before JAX is imported, and how hypothesis draws."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

os.environ["JAX_PLATFORMS"] = os.environ.get("GRAFT_TEST_PLATFORM", "cpu")
# Eight devices, and code that is neither optimised by LLVM nor made by fusion emitters (which takes
# three times as long): tests compare numbers, and compiling is most of their time.
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
)
for flag in FLAGS:
    if flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
# A device that waits for the others in a collective holds a thread, and XLA makes one thread a
# core: on two, eight devices can wait for each other for ever.
os.environ.setdefault("PJRT_NPROC", "32")
# One cache of compiled programs for every test process and the programs that tests start. Two that
# write one entry at once write the same bytes; one that reads it half written compiles it itself.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

settings.register_profile("graft", deadline=None, derandomize=True, max_examples=20, database=None)
settings.load_profile("graft")


@pytest.fixture(scope="module", autouse=True)
def memory():
    """JAX keeps every program that it compiled: gigabytes in a process that runs all tests."""
    yield
    if "jax" in sys.modules and resident() > 2 * 10**9:
        from research.runtime.memory import release_memory

        release_memory(compiled=True)


def resident() -> int:
    """Bytes of memory that this process has; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[1]) if statm.exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A corpus, a tokenizer and a base, made once for a test process."""
    from tests.helpers import tiny_run  # it imports JAX

    return tiny_run.world(tmp_path_factory.getbasetemp())
