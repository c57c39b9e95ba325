"""Real processes read one stream: whatever their number, and after some of them were killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from research.config import schema
from research.data.config import DataConfig
from research.data.mixture import MixtureConfig, Phase
from research.data.pipeline import Pipeline
from research.data.sources import JsonlConfig
from research.text import tokenizer
from tests.helpers.reader import digests
from tests.helpers.texts import WORDS

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """What every reader is given: three sources, packed, with a cap, a temperature, a schedule."""
    folder, draw = tmp_path_factory.mktemp("hosts"), np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, draw.integers(1, 70))) for _ in range(240)]
    sources = []
    for i, name in enumerate(("prose", "code", "forum")):
        lines = [json.dumps({"text": text}) for text in texts[i::3][: 80 // (i + 1)]]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
        sources.append(JsonlConfig(name, str(folder / f"{name}.jsonl"), weight=3.0 - i))
    phases = (Phase(11, {"code": 5.0}), Phase(23, {"prose": 0.0}))
    mixture = MixtureConfig(temperature=2.0, max_epochs=9.0, schedule=phases)
    config = DataConfig(tuple(sources), 48, 8, mixture=mixture, seed=3)
    tokenizer.train(texts, 330).save(folder / "tokenizer.json")
    return {
        "config": schema.to_dict(config),
        "tokenizer": str(folder / "tokenizer.json"),
        "cache": str(folder / "cache"),
    }


def _start(work, start: int, stop: int, hosts: int) -> list[subprocess.Popen]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONHASHSEED": str(hosts)}
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.helpers.reader"),
                json.dumps(work | {"start": start, "stop": stop, "host": host, "hosts": hosts}),
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for host in range(hosts)
    ]


def _read(work, start: int, stop: int, hosts: int) -> list[list[str]]:
    """The global batches: every host's rows, in the order of hosts."""
    outputs = []
    for process in _start(work, start, stop, hosts):
        outputs.append(process.communicate(timeout=120)[0].splitlines())
        assert process.returncode == 0
    return [sum(map(json.loads, lines), []) for lines in zip(*outputs, strict=True)]


@pytest.mark.heavy
def test_1_2_and_4_processes_read_the_same_batches_also_after_some_were_killed(work, tmp_path):
    whole = _read(work | {"cache": str(tmp_path / "alone")}, 0, STEPS, 1)
    assert len(whole) == STEPS and len({row for batch in whole for row in batch}) > STEPS
    # Two that tokenize into one new cache at the same time, and die in the middle.
    stopped = 17
    running = _start(work, 0, 10**6, 2)
    batches = [
        [json.loads(process.stdout.readline()) for _ in range(stopped)] for process in running
    ]
    for process in running:
        process.kill()
        process.communicate()
    assert [a + b for a, b in zip(*batches, strict=True)] == whole[:stopped]
    assert _read(work, stopped, STEPS, 4) == whole[stopped:]
    # This process too, which has other threads, libraries and devices.
    here = Pipeline(
        schema.build(DataConfig, work["config"]),
        tokenizer.load(work["tokenizer"]),
        tmp_path / "here",
    )
    assert [digests(here.batch(step)) for step in range(STEPS)] == whole
    assert len(here.mixture.stretches) > 3, "the schedule and the caps were met"
