"""Small corpora with known truth, a tokenizer, and a runner that needs no Beam."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.data.sources import SourceConfig
from research.preparation import pipeline
from research.preparation.config import PreparationConfig
from research.text import tokenizer as tokenizers
from research.text.tokenizer import Tokenizer

SYLLABLES = ("ka", "lo", "mi", "ren", "tas", "vu", "shi", "or", "pel", "dun", "ga", "eth")
STOP_WORDS = ("the", "of", "and", "to", "that")


class Serial:
    """Runs each item in this process: enough for stages that group nothing."""

    def each(self, items: Iterable[Any], work: Any) -> None:
        for item in items:
            work(item)


def prose(seed: int, words: int = 120) -> str:
    """Distinct text that breaks no rule of quality."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(words):
        if number % 3 == 0:
            made.append(str(random.choice(STOP_WORDS)))
        else:
            made.append("".join(random.choice(SYLLABLES, random.integers(2, 5))))
    return " ".join(made)


def edited(text: str, seed: int, changes: int) -> str:
    """The text with some of its words replaced."""
    random = np.random.default_rng(seed)
    words = text.split()
    for place in random.choice(len(words), changes, replace=False):
        words[place] = f"changed{seed}"
    return " ".join(words)


def write(path: Path, texts: Sequence[str]) -> None:
    lines = [json.dumps({"id": f"d{i}", "text": text}) for i, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def source(folder: Path, name: str, **settings: Any) -> SourceConfig:
    return SourceConfig(name, "jsonl", str(folder / f"{name}.{{split}}.jsonl"), **settings)


@functools.cache
def tokenizer() -> Tokenizer:
    return tokenizers.train([prose(seed) for seed in range(20)], 400)


def config(folder: Path, kinds: dict[str, Sequence[str]], **settings: Any) -> PreparationConfig:
    """Writes the texts of each kind as split "train"; plain: no stage that removes anything."""
    for kind, texts in kinds.items():
        write(folder / f"{kind}.train.jsonl", texts)
    tokenizer().save(folder / "tokenizer.json")
    plain: dict[str, Any] = {"exact_duplicates": False, "near_duplicates": None, "rows": 7}
    sources = tuple(source(folder, kind) for kind in kinds)
    return PreparationConfig(sources, str(folder / "tokenizer.json"), **plain | settings)


def changed(config: PreparationConfig, **settings: Any) -> PreparationConfig:
    return dataclasses.replace(config, **settings)


def prepare(config: PreparationConfig, out: Path, run: Any = None) -> tuple[dict, list[str]]:
    """The statistics, and what was said."""
    said: list[str] = []
    return pipeline.prepare(config, out, run or Serial(), said.append), said


def kept(out: Path, name: str = "x", split: str = "train") -> list[str]:
    """Kind and id of the documents that stayed, in order."""
    from research.data.sources import open_source

    opened = open_source(SourceConfig(name, "prepared", str(out)), split)
    rows = [opened[i] for i in range(len(opened))]
    return [f"{row['kind']}/{row['id']}" for row in rows]


def content(out: Path) -> dict[str, bytes]:
    """Every file of the result but the markers, which hold times."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(out)): path.read_bytes() for path in files if path.name != "done.json"
    }
