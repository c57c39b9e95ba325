"""Runs small enough to train in a second or two: a corpus, a tokenizer, experiments, a base."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research import methods, tree
from research.checkpoints import runs
from research.checkpoints.checkpointer import open_checkpoint
from research.config import schema
from research.data.config import DataConfig
from research.data.sources import JsonlConfig
from research.experiment import Experiment
from research.models.config import ModelConfig
from research.models.transformer import Transformer
from research.objectives import Supervised
from research.optim.schedules import ScheduleConfig
from research.text import tokenizer
from research.training.loop import train
from tests.helpers import rounding

ROOT = Path(__file__).resolve().parents[2]
# Where programs keep tokenized sources; also for those that tests start.
os.environ.setdefault("GRAFT_CACHE", str(ROOT / ".cache" / "graft"))

MODEL = ModelConfig(vocabulary=288, width=16, layers=2, heads=2, kv_heads=2, mlp_width=32)
ROUNDINGS = rounding.forward_roundings(MODEL, 32)  # in a row, to the logits of a row of 32 tokens
COLOURS = ("red", "green", "blue", "white")


@dataclasses.dataclass(frozen=True)
class World:
    """A folder with data, and what is trained on it once for all tests of a process."""

    folder: Path

    def data(self, source: str = "prose", **settings: Any) -> DataConfig:
        """32 tokens a row and 8 rows, one for each device."""
        sources = (JsonlConfig(source, str(self.folder / (source + "-{split}.jsonl"))),)
        return DataConfig(**{"sources": sources, "sequence_length": 32, "batch_size": 8} | settings)

    def questions(self) -> DataConfig:
        objective = Supervised(template="Q: {prompt}\nA: ", answer_tokens=8)
        return self.data("questions", objective=objective)

    def experiment(self, steps: int, **changes: Any) -> Experiment:
        """From random weights, at a constant rate, so that a run of N steps begins every longer."""
        settings: dict[str, Any] = {
            "data": self.data(),
            "model": MODEL,
            "tokenizer": str(self.folder / "tokenizer.json"),
            "schedule": ScheduleConfig(learning_rate=1e-2, kind="constant"),
            "log_every": 1,
        }
        return Experiment(steps=steps, **settings | changes)

    def tuning(self, steps: int, **changes: Any) -> Experiment:
        """From the base, on questions."""
        start = {"model": None, "tokenizer": None, "init_from": str(self.base)}
        return self.experiment(steps, **start | {"data": self.questions()} | changes)

    @functools.cached_property
    def base(self) -> Path:
        """A run of 30 steps on prose."""
        train(self.experiment(30), self.folder / "base")
        return self.folder / "base"


@functools.cache
def world(temporary: Path) -> World:
    """The world of a test process, in pytest's own temporary folder."""
    folder = temporary / "world"
    folder.mkdir()
    prose = [f"{colour} leaves fall on {n} roofs." for n in range(12) for colour in COLOURS]
    _write(folder / "prose-train.jsonl", [{"text": text} for text in prose])
    _write(folder / "prose-heldout.jsonl", [{"text": f"{n} roofs, red."} for n in range(9)])
    questions = [
        {"prompt": f"roof {n} {colour}", "completion": colour}
        for n in range(9)
        for colour in COLOURS
    ]
    _write(folder / "questions-train.jsonl", questions[:24])
    _write(folder / "questions-heldout.jsonl", questions[24:])
    tokenizer.train(prose, MODEL.vocabulary).save(folder / "tokenizer.json")
    return World(folder)


def adapter(base: Path, method: Any, out: Path, seed: int = 0) -> Path:
    """An adapter with random numbers, saved as if it had been tuned on the base; its folder."""
    run = runs.open_run(base)
    random = np.random.default_rng(seed)
    arrays = {}
    attachments = _attaching(run.model, method)(jax.random.key(seed))
    for name, leaf in tree.unstack(jax.tree.map(np.asarray, attachments)).items():
        moves = not name.endswith("/scale")
        noise = moves * 0.1 * random.normal(size=leaf.shape)
        arrays[name] = np.asarray(leaf + noise, leaf.dtype)
    runs.write(out, run, arrays, run.model, method=method, base=run)
    return out


@functools.cache
def _attaching(shape: ModelConfig, method: Any) -> Callable[[jax.Array], dict[str, jax.Array]]:
    stacks = methods.derive_stacks(shape, method)

    @jax.jit
    def build(key):
        leaves = tree.flatten(method.attach(Transformer(key, shape, stacks), key))
        return {name: leaf for name, leaf in leaves.items() if tree.is_attached(name)}

    return build


def _write(path: Path, lines: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def config_file(folder: Path, experiment: Experiment) -> Path:
    """A config file that gives the experiment."""
    path = folder / "config.py"
    content = json.dumps(schema.to_dict(experiment))
    path.write_text(f"import json\n\n\ndef get_config():\n    return json.loads({content!r})\n")
    return path


def command(program: str, *arguments: object) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "research.cli", program, *map(str, arguments)]


def start(experiment: Experiment, folder: Path, workdir: Path) -> subprocess.Popen[str]:
    """`graft train` in a process of its own."""
    line = command("train", "--config", config_file(folder, experiment), "--workdir", workdir)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(line, cwd=ROOT, **pipes)  # type: ignore[call-overload]


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool], seconds: float = 120):
    """Waits until `ready()`; fails with the process's output when it ends before."""
    last = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > last:
            process.kill()
            raise AssertionError(f"not ready: {process.communicate()[0]}")
        time.sleep(0.002)


def lines(workdir: Path) -> list[str]:
    """The lines of metrics.jsonl, none while there is no such file."""
    path = workdir / "metrics.jsonl"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def content(workdir: Path, step: int | None = None) -> dict[str, Any]:
    """What identifies every array of a checkpoint: model, optimizer and step."""
    return open_checkpoint(workdir, step).checksums()
