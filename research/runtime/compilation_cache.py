"""The cache of compiled programs on disk, so that a second start compiles nothing."""

import atexit
import contextlib
import hashlib
import os
import platform
from pathlib import Path

import jax

from research.runtime import files


def enable_compilation_cache(folder: str | Path | None = None) -> str:
    """Lets JAX keep and reuse programs that took over half a second to compile.

    The folder is, first to last: `folder`, `$JAX_COMPILATION_CACHE_DIR`, `$GRAFT_CACHE/jax`,
    `~/.cache/graft/jax`. It may be deleted at any time, and processes may share it: a torn entry
    costs a warning and a compilation. Programs hold instructions of the CPU they were compiled on,
    so that in a home that several machines share each kind of CPU has its own folder.

    In `$GRAFT_CACHE` and the home's cache, who may read the folder above may read the programs too.

    Returns the folder.
    """
    folder = folder or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not folder:
        root = os.environ.get("GRAFT_CACHE") or Path.home() / ".cache" / "graft"
        folder = Path(root) / "jax" / _cpu_kind()
        _share(folder)
        atexit.register(_share, folder)  # JAX writes with the umask
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # small programs too: a save alone runs one for every shape of an array
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    return str(folder)


def _share(folder: Path) -> None:
    """Makes the folder, and shares what this user has there."""
    with contextlib.suppress(OSError):  # JAX goes on without a cache
        folder.mkdir(parents=True, exist_ok=True)
        files.share(folder.parent, folder.parents[1])


def _cpu_kind() -> str:
    """A short name for the CPU's instruction set."""
    features = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
