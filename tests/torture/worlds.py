"""What torture damages: a corpus, a base, a tuned run, exports of both, prepared data, a cache."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

from research.runtime import children

ROOT = Path(__file__).resolve().parents[2]
STEPS = 30  # of a run that signals come to; it saves every fourth step


@dataclasses.dataclass(frozen=True)
class World:
    """The folder, with a result that nothing happened to."""

    folder: Path

    @property
    def whole(self) -> Path:
        """The run of `STEPS` steps that nobody stopped."""
        return self.folder / "whole"

    def environment(self, cache: Path | None = None) -> dict[str, str]:
        """Variables of the programs: one device, and caches of the world's own."""
        return {
            **children.child_environment(),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "GRAFT_CACHE": str(cache or self.folder / "cache"),
            "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR")
            or str(self.folder / "jax"),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
        }

    def train(self, workdir: Path) -> list[str]:
        """The command of the run, into a folder."""
        program = [sys.executable, "-m", "research.train"]
        return [*program, "--config", str(self.folder / "config.py"), "--workdir", str(workdir)]


def build(folder: Path) -> World:
    """Makes the world, in a process of its own, or takes the one that is there.

    Raises:
      RuntimeError: that failed.
    """
    world = World(folder)
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = [sys.executable, "-m", "tests.torture.worlds", str(folder)]
        process = subprocess.run(
            command, cwd=ROOT, env=world.environment(), capture_output=True, text=True
        )
        if process.returncode:
            raise RuntimeError(f"the world could not be made: {process.stderr[-4000:]}")
        (folder / "done").touch()
    return world


def _make(folder: Path) -> None:
    from research.commands import convert
    from research.experiment import CheckpointConfig
    from research.methods import LoRA
    from research.text import tokenizer as tokenizers
    from research.training.loop import train
    from tests.helpers import tiny_run
    from tests.preparation import corpus

    # in a folder of that name, where `tiny_run.World` expects its files
    temporary = folder / "made"
    temporary.mkdir()
    tiny = tiny_run.world(temporary)
    for file in tiny.folder.iterdir():
        shutil.move(str(file), folder / file.name)
    tiny = tiny_run.World(folder)
    experiment = tiny.experiment(
        STEPS,
        dropout=0.1,
        checkpoint=CheckpointConfig(every=4),
        evaluate_split="heldout",
        evaluate_every=7,
    )
    tiny_run.config_file(folder, experiment)
    train(experiment, folder / "whole")
    train(tiny.tuning(4, method=LoRA(rank=2)), folder / "tuned")
    base, tuned = ["export", "--from", f"{folder}/base"], ["export", "--from", f"{folder}/tuned"]
    convert.main([*base, "--out", f"{folder}/transformers"])
    convert.main([*base, "--format", "gguf", "--out", f"{folder}/model.gguf"])
    convert.main(["import", "--from", f"{folder}/transformers", "--out", f"{folder}/imported"])
    convert.main([*tuned, "--format", "peft", "--out", f"{folder}/peft"])
    (folder / "documents").mkdir()
    documents = corpus.config(folder / "documents", {"a": [corpus.prose(n) for n in range(20)]})
    corpus.prepare(documents, folder / "prepared")
    assert tokenizers.load(folder / "tokenizer.json")


if __name__ == "__main__":
    _make(Path(sys.argv[1]))
