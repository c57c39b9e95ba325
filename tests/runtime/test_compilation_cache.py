"""The cache of compiled programs on disk."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import jax

from research.runtime.compilation_cache import enable_compilation_cache

ROOT = Path(__file__).resolve().parents[2]


def test_second_process_compiles_nothing_and_others_may_read_and_add(tmp_path: Path) -> None:
    program = (
        "import os, jax, jax.numpy as jnp\n"
        "os.umask(0o077)\n"
        "from research.runtime.compilation_cache import enable_compilation_cache\n"
        "enable_compilation_cache()\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)\n"
        "jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((8, 8))).block_until_ready()\n"
        "os._exit(0)\n"  # as if it were killed
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["GRAFT_CACHE"] = str(tmp_path)
    tmp_path.chmod(0o1777)

    def entries() -> dict[str, int]:
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
        return {p.name: p.stat().st_mtime_ns for p in tmp_path.rglob("*-cache")}

    first = entries()
    assert any("lambda" in name for name in first)
    assert entries() == first
    modes = {(p.is_dir(), stat.S_IMODE(p.stat().st_mode)) for p in tmp_path.rglob("*")}
    assert modes == {(True, 0o1777), (False, 0o644)}


def test_a_folder_that_this_user_may_not_write_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path))
    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setattr(os, "access", lambda *_: False)
    try:
        folder = enable_compilation_cache()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    (record,) = caplog.records
    assert "programs are not kept" in record.message and folder in record.message


def test_cache_folder_given_in_the_environment_is_kept() -> None:
    before = jax.config.values["jax_compilation_cache_dir"]
    assert enable_compilation_cache() == os.environ["JAX_COMPILATION_CACHE_DIR"] == before
