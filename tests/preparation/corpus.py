"""Small corpora with known truth, a tokenizer, and a runner that needs no Beam."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.data.sources import JsonlConfig, PreparedConfig, SourceConfig, open_source
from research.preparation import pipeline
from research.preparation.config import PreparationConfig
from research.text import tokenizer as tokenizers
from research.text.tokenizer import Tokenizer

SYLLABLES = ("ka", "lo", "mi", "ren", "tas", "vu", "shi", "or", "pel", "dun", "ga", "eth")
STOP_WORDS = ("the", "of", "and", "to", "that")


class SerialRunner:
    """Runs each item in this process: enough for stages that group nothing."""

    def for_each(self, items: Iterable[Any], function: Any) -> None:
        for item in items:
            function(item)


def prose(seed: int, words: int = 120) -> str:
    """Distinct text that breaks no rule of quality."""
    random = np.random.default_rng(seed)
    tokens = []
    for number in range(words):
        if number % 3 == 0:
            tokens.append(str(random.choice(STOP_WORDS)))
        else:
            tokens.append("".join(random.choice(SYLLABLES, random.integers(2, 5))))
    return " ".join(tokens)


def replace_words(text: str, seed: int, changes: int) -> str:
    """The text with some of its words replaced."""
    random = np.random.default_rng(seed)
    tokens = text.split()
    for place in random.choice(len(tokens), changes, replace=False):
        tokens[place] = f"changed{seed}"
    return " ".join(tokens)


def write(path: Path, texts: Sequence[str]) -> None:
    lines = [json.dumps({"id": f"d{i}", "text": text}) for i, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def source(folder: Path, name: str, **settings: Any) -> SourceConfig:
    return JsonlConfig(name, str(folder / f"{name}.{{split}}.jsonl"), **settings)


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


def replace(config: PreparationConfig, **settings: Any) -> PreparationConfig:
    return dataclasses.replace(config, **settings)


def prepare(config: PreparationConfig, out: Path, runner: Any = None) -> tuple[dict, list[str]]:
    """The statistics, and what was said."""
    log_lines: list[str] = []
    return pipeline.prepare(config, out, runner or SerialRunner(), log_lines.append), log_lines


def kept_names(out: Path, name: str = "x", split: str = "train") -> list[str]:
    """Kind and id of the documents that stayed, in order."""

    prepared_source = open_source(PreparedConfig(name, str(out)), split)
    rows = [prepared_source[i] for i in range(len(prepared_source))]
    return [f"{row['kind']}/{row['id']}" for row in rows]


def content(out: Path) -> dict[str, bytes]:
    """Every file of the result but the markers and the lock, which hold times."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in files
        if path.name not in ("done.json", ".lock")
    }
