"""The cache of compiled programs on disk."""

import os
import subprocess
import sys
from pathlib import Path

import jax

from research.runtime.compilation_cache import enable_compilation_cache

ROOT = Path(__file__).resolve().parents[2]


def test_second_process_compiles_nothing(tmp_path: Path) -> None:
    program = (
        "import jax, jax.numpy as jnp\n"
        "from research.runtime.compilation_cache import enable_compilation_cache\n"
        "enable_compilation_cache()\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)\n"
        "jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((8, 8))).block_until_ready()\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["GRAFT_CACHE"] = str(tmp_path)

    def entries() -> dict[str, int]:
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
        return {p.name: p.stat().st_mtime_ns for p in tmp_path.rglob("*-cache")}

    first = entries()
    assert any("lambda" in name for name in first)
    assert entries() == first


def test_cache_folder_given_in_the_environment_is_kept() -> None:
    before = jax.config.values["jax_compilation_cache_dir"]
    assert enable_compilation_cache() == os.environ["JAX_COMPILATION_CACHE_DIR"] == before
