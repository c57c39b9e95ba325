"""Contenders of data.py: reading packed batches, tokenising, and libraries alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain.python as grain
import numpy as np
import tokenizers

from research.data import token_cache
from research.data.config import DataConfig
from research.data.pipeline import Pipeline
from research.data.sources import SourceConfig, TfdsConfig, open_source
from research.objectives import OBJECTIVES
from research.runtime.memory import peak_memory_bytes
from research.text import tokenizer as tokenizer_lib
from research.text.tokenizer import Tokenizer

# what the harness asks
peak_memory = peak_memory_bytes
KINDS = ("books", "code", "encyclopedia", "forum", "web")
SPECIAL = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|mask|>"]
SPECIAL += [f"<extra_id_{number}>" for number in range(100)]
SAMPLE = 400  # documents of each kind that the tokenizer is trained on


def sources() -> tuple[SourceConfig, ...]:
    return tuple(TfdsConfig(f"graft_{kind}") for kind in KINDS)


def train_tokenizer() -> Tokenizer:
    """4,096 tokens of byte-level BPE, and special ones for every objective."""
    texts = []
    for source in map(open_source, sources()):
        texts += [source[i]["text"] for i in range(0, len(source), -(-len(source) // SAMPLE))]
    backend = tokenizers.Tokenizer.from_str(tokenizer_lib.train(texts, 4096).to_json())
    backend.add_special_tokens(SPECIAL)
    return Tokenizer(backend)


def prepare(settings: Mapping[str, Any]):
    return {"batches": _batches, "grain": _grain, "tokenise": _tokenise, "library": _library}[
        settings["what"]
    ](settings)


def _batches(settings: Mapping[str, Any]):
    """A run's own batches, one after another in one process."""
    length, rows = settings["sequence_length"], settings["batch_size"]
    config = DataConfig(sources(), length, rows, OBJECTIVES[settings["objective"]]())
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_file(settings["tokenizer"]))
    pipeline = Pipeline(config, tokenizer, token_cache.default_cache())
    steps = settings["steps"]
    stream = pipeline.batches()

    def run() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            next(stream)
        return time.perf_counter() - start

    plans = [rows.plan for rows in pipeline.rows.values()]
    pieces = sum(len(plan.examples) for plan in plans) / sum(map(len, plans))
    return {"tokens": steps * rows * length, "pieces": pieces}, run


def _grain(settings: Mapping[str, Any]):
    """The library alone: rows that are one array already, shuffled and batched."""
    length, rows = settings["sequence_length"], settings["batch_size"]
    table = np.random.default_rng(0).integers(0, 4096, (8192, length + 1), np.int32)
    data = grain.MapDataset.source(table).seed(0).shuffle().repeat().batch(rows)
    at, steps = 0, settings["steps"]

    def run() -> float:
        nonlocal at
        start = time.perf_counter()
        for _ in range(steps):
            data[at]
            at += 1
        return time.perf_counter() - start

    return {"tokens": steps * rows * length}, run


def _texts() -> list[str]:
    opened_sources = map(open_source, sources())
    return [source[i]["text"] for source in opened_sources for i in range(0, len(source), 4)]


class _InMemory:
    """Texts that are read already: only tokenising is measured, and writing what it gives."""

    name, fingerprint, format, bad_lines, note = "texts", "texts", "text", 0, ""
    acceptance: Mapping[str, Any] = {}

    def __init__(self, texts: list[str]):
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"text": self._texts[index]}


def _tokenise(settings: Mapping[str, Any]):
    texts = _texts()
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_file(settings["tokenizer"]))

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            token_cache.tokenize(_InMemory(texts), tokenizer, {"text": True}, Path(folder))
            return time.perf_counter() - start

    return {"bytes": sum(len(text.encode()) for text in texts)}, run


def _library(settings: Mapping[str, Any]):
    texts = _texts()
    backend = tokenizers.Tokenizer.from_file(settings["tokenizer"])

    def run() -> float:
        start = time.perf_counter()
        backend.encode_batch(texts, add_special_tokens=False)
        return time.perf_counter() - start

    return {"bytes": sum(len(text.encode()) for text in texts)}, run
