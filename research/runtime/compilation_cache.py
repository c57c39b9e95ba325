"""The cache of compiled programs on disk, so that a second start compiles nothing."""

import contextlib
import functools
import hashlib
import logging
import os
import platform
from pathlib import Path
from typing import Any

import jax

from research.runtime import files

log = logging.getLogger(__name__)

# Of JAX: before it writes a program, and when it has compiled one and written it.
_WRITES, _COMPILED = "/jax/compilation_cache/cache_misses", "backend_compile_duration"


def enable_compilation_cache(folder: str | Path | None = None) -> str:
    """Lets JAX keep and reuse programs that took over half a second to compile.

    The folder is, first to last: `folder`, `$JAX_COMPILATION_CACHE_DIR`, `$GRAFT_CACHE/jax`,
    `~/.cache/graft/jax`. It may be deleted at any time, and processes may share it: a torn entry
    costs a warning and a compilation. Programs hold instructions of the CPU they were compiled on,
    so that in a home that several machines share each kind of CPU has its own folder.

    In `$GRAFT_CACHE` and the home's cache, who may read or write the folder above may read these
    programs and write others. A folder that this user may not write is said.

    Returns the folder.
    """
    folder = folder or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not folder:
        root = os.environ.get("GRAFT_CACHE") or Path.home() / ".cache" / "graft"
        folder = Path(root) / "jax" / _cpu_kind()
        _share(folder)
        _share_programs(folder)
        is_there = True
    else:
        is_there = os.path.isdir(folder)  # else JAX makes it, or it is a bucket
    if is_there and not os.access(folder, os.W_OK):
        log.warning(
            "compiled programs are not kept: this user may not write in %s. Ask its owner to let "
            "you, or set GRAFT_CACHE to a folder of your own",
            folder,
        )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # small programs too: a save alone runs one for every shape of an array
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    return str(folder)


def _share(folder: Path) -> None:
    """Makes the folder, and shares what this user has there."""
    with contextlib.suppress(OSError):  # JAX goes on without a cache
        for place in (folder.parent, folder):
            files.make_shared_folder(place)
        files.share(folder, folder.parent)


@functools.cache
def _share_programs(folder: Path) -> None:
    """Shares each program as soon as it is written, which JAX does with the umask."""
    is_written = False

    def note_write(event: str, **_: Any) -> None:
        nonlocal is_written
        is_written |= event == _WRITES

    def share(event: str, *_: Any, **__: Any) -> None:
        nonlocal is_written
        if is_written and event.endswith(_COMPILED):
            is_written = False
            _share(folder)

    jax.monitoring.register_event_listener(note_write)
    jax.monitoring.register_event_duration_secs_listener(share)


def _cpu_kind() -> str:
    """A short name for the CPU's instruction set."""
    features = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
