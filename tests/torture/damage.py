"""Damaged files: bytes flipped, ends cut off, blocks of zeros, files that are gone.

What was opened is the same as before, or one line says what is wrong. Files that carry checksums
(a run's, the token cache's, prepared data's) are never opened as something else; those of other
projects carry none, and may open as another model.
"""

from __future__ import annotations

import dataclasses
import json
import random
import select
import shutil
import subprocess
import sys
from pathlib import Path

from tests.torture.cases import Case, Family, PromiseError
from tests.torture.worlds import ROOT, World

SECONDS = 120  # for one question: the program hangs


@dataclasses.dataclass(frozen=True)
class Target:
    """What is damaged, and how it is opened."""

    kind: str
    # in the world: what is copied, and what of it may be damaged
    path: str
    pattern: str = "*"
    has_checksums: bool = False
    # of an error: a list of tensors that do not fit takes one for each
    max_lines: int = 1


TARGETS = {
    "checkpoint": Target("run", "base", "checkpoints/**/*", has_checksums=True),
    "tuned run": Target("run", "tuned", "checkpoints/**/*", has_checksums=True),
    "token cache": Target("cache", "cache/tokens", "**/*", has_checksums=True),
    "prepared data": Target("prepared", "prepared", "**/*", has_checksums=True),
    "tokenizer": Target("tokenizer", "tokenizer.json"),
    "safetensors": Target("model", "transformers", "*.*", max_lines=30),
    "GGUF": Target("model", "model.gguf", max_lines=30),
    "PEFT adapter": Target("adapter", "peft", "adapter_*", max_lines=30),
}


class Opener:
    """The worker process, started again after it was lost."""

    def __init__(self, world: World):
        self._world = world
        self._process: subprocess.Popen[str] | None = None
        self._whole: dict[str, str] = {}

    def whole(self, target: Target) -> str:
        """The digest of a target before it was damaged."""
        if target.path not in self._whole:
            reply = self.ask(target.kind, self._world.folder / target.path)
            if "digest" not in reply:
                raise PromiseError(f"{target.path} cannot be opened undamaged: {reply}")
            self._whole[target.path] = reply["digest"]
        return self._whole[target.path]

    def ask(self, kind: str, path: Path) -> dict[str, str]:
        """The worker's answer; raises PromiseError where there is none."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.torture.worker"],
                cwd=ROOT,
                env=self._world.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        question = {"kind": kind, "path": str(path), "world": str(self._world.folder)}
        print(json.dumps(question), file=self._process.stdin, flush=True)
        ready, _, _ = select.select([self._process.stdout], [], [], SECONDS)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            what = f"ended with {self._process.wait()}" if ready else f"hangs for {SECONDS} s"
            self.close()
            raise PromiseError(f"the process that opened it {what}")
        return json.loads(line)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def damage(content: bytes, choice: random.Random) -> tuple[bytes | None, str]:
    """The damaged bytes, None for none at all, and what was done."""
    size = max(1, len(content))
    kind = choice.choice(["flip", "flip", "flip", "cut", "zeros", "gone"])
    place = choice.randrange(size)
    if kind == "gone":
        return None, "gone"
    if kind == "cut":
        return content[:place], f"cut at {place}"
    if kind == "zeros":
        end = min(size, place + choice.choice([8, 512, 4096]))
        return content[:place] + bytes(end - place) + content[end:], f"zeros at {place}:{end}"
    damaged = bytearray(content)
    places = sorted(choice.randrange(size) for _ in range(choice.choice([1, 1, 2, 8])))
    for place in places if content else []:
        damaged[place] ^= 1 << choice.randrange(8)
    return bytes(damaged), f"bits flipped at {places}"


def families(world: World) -> tuple[list[Family], Opener]:
    """A family for each target, and the worker that they share."""
    opener = Opener(world)

    def family(name: str, target: Target) -> Family:
        def run(case: Case) -> str:
            return _run(case, world, opener, target)

        promise = "the same, or one line" if target.has_checksums else "one line, or a model"
        return Family(name, f"{target.path}: {promise}", run, weight=6)

    return [family(name, target) for name, target in TARGETS.items()], opener


def _run(case: Case, world: World, opener: Opener, target: Target) -> str:
    choice, source = case.random, world.folder / target.path
    expected = opener.whole(target)
    copy = case.folder / source.name
    if source.is_dir():
        shutil.copytree(source, copy, symlinks=True)
        files = sorted(file for file in copy.glob(target.pattern) if file.is_file())
        file = choice.choice(files)
    else:
        file = Path(shutil.copy(source, copy))
    content, what = damage(file.read_bytes(), choice)
    what = f"{file.relative_to(case.folder)}: {what}"
    (case.folder / "what.txt").write_text(what + "\n")
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    # a cache lies in a folder of its name
    reply = opener.ask(target.kind, copy.parent if target.kind == "cache" else copy)
    if "traceback" in reply:
        raise PromiseError(f"{what}\n{reply['traceback'][-3000:]}")
    if "error" in reply:
        lines = reply["error"].strip().splitlines()
        if not 1 <= len(lines) <= target.max_lines:
            raise PromiseError(f"{what}: the error has {len(lines)} lines: {reply['error'][:2000]}")
        return "one line"
    if reply["digest"] == expected:
        return "the same"
    if target.has_checksums:
        raise PromiseError(f"{what}: opened as something else, without a word")
    return "opens as another"
