"""Files of one JSON object a line."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from research.data.sources.base import Records, Source, SourceConfig, file_digest, local_path


class _JsonLines:
    """Lines of one JSONL file, found by byte offset and parsed when asked for."""

    def __init__(self, path: Path):
        self.path = path
        starts, numbers, at = [], [], 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    starts.append((at, at + len(line)))
                    numbers.append(number)
                at += len(line)
        self._spans = np.asarray(starts, np.int64).reshape(-1, 2)
        self._numbers = np.asarray(numbers, np.int64)
        # An empty file cannot be mapped.
        self._bytes = np.memmap(path, np.uint8, mode="r") if at else np.zeros(0, np.uint8)

    def place(self, index: int) -> str:
        return f"{self.path}:{self._numbers[index]}"

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, stop = self._spans[index]
        try:
            record = json.loads(self._bytes[start:stop].tobytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.place(index)}: not a line of JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(
                f"{self.place(index)}: a JSON object is needed, such as "
                f'{{"text": "..."}}, not a {type(record).__name__}.'
            )
        return record


def open_jsonl(config: SourceConfig, split: str) -> Source:
    """The lines of a file."""
    path = local_path(config, split)
    if not path.is_file():
        raise FileNotFoundError(f"Source {config.name!r}: there is no file {path}.")
    lines = _JsonLines(path)
    return Records(config, split, lines, lambda: file_digest(path, None), lines.place)
