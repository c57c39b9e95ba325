"""Which process has which trial, on all machines that share the folder of a study, disk or bucket.

A claim is a file `running/ADDRESS.N.json` that is made only if there is none of its name, which
buckets promise too. Its holder renews it every few seconds, with the step that the trial is at; of
several the highest N counts. A claim that has not changed for `PATIENCE` seconds, by the clock of
the process that looks, belongs to a dead one, and whoever makes N + 1 has the trial. Should the
first live after all, it sees that it has lost the trial, and leaves it. On a disk a lock says at
once that a process of the same machine is dead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
from etils import epath

from research.runtime import files, signals, storage
from research.runtime.locks import lock_file

RUNNING = "running"
BEAT = 5.0  # seconds between two signs of life
PATIENCE = 60.0  # seconds without one after which a process counts as dead
_NAME = re.compile(r"([0-9a-f]{20})\.(\d+)\.json")


class ClaimLostError(Exception):
    """Another process has taken the trial over: this one gave no sign of life for too long."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that runs a trial, and where the trial stands; the content of a claim."""

    trial: str
    host: str
    process: int
    since: str
    # counts the signs of life
    beat: int = 0
    last_sign: str = ""
    step: int = 0
    steps: int = 0
    tokens_per_second: float | None = None

    @property
    def share(self) -> float:
        """The share of the trial's steps that are done."""
        return self.step / self.steps if self.steps else 0.0

    @property
    def place(self) -> str:
        return f"process {self.process} on {self.host}"

    @property
    def progress(self) -> str:
        step = f"step {self.step} of {self.steps}" if self.steps else "starting"
        rate = f", {self.tokens_per_second:,.0f} tokens/s" if self.tokens_per_second else ""
        return f"{self.trial}: {step}{rate}"

    def describe(self) -> str:
        """The trial, its step and its process, in a line."""
        text = f"{self.progress}; {self.place}, since {self.since}"
        if not self.last_sign:
            return text
        silence = (_now() - datetime.datetime.fromisoformat(self.last_sign)).total_seconds()
        return f"{text}; no sign of life for {silence:.0f} s" if silence > PATIENCE else text


class Claim:
    """A trial that this process has; renewed by a thread until it is released."""

    def __init__(self, claims: Claims, address: str, number: int, holder: Holder):
        self._claims, self.address, self.number = claims, address, number
        self.holder = holder
        self.is_lost = self._is_released = False

    def on_step(self, step: int, steps: int, tokens_per_second: float | None) -> None:
        """Notes where the trial stands.

        Raises:
          ClaimLostError: another process has the trial.
        """
        self.holder = dataclasses.replace(
            self.holder, step=step, steps=steps, tokens_per_second=tokens_per_second
        )
        if self.is_lost:
            raise ClaimLostError(self.holder.trial)

    def renew(self) -> None:
        """Gives a sign of life, and looks whether another process has taken the trial."""
        if self._is_released:
            return
        now = _now().isoformat(timespec="seconds")
        self.holder = dataclasses.replace(self.holder, beat=self.holder.beat + 1, last_sign=now)
        files.atomic_write(self._claims.file(self.address, self.number), _text(self.holder))
        self.is_lost = self._claims.numbers().get(self.address, -1) > self.number

    def release(self) -> None:
        """Lets others have the trial at once."""
        self._is_released = True
        with contextlib.suppress(Exception):  # else they wait until it counts as dead
            for number in range(self.number + 1):
                self._claims.file(self.address, number).unlink(missing_ok=True)


class Claims:
    """The claims of a study's folder.

    Attributes:
      on_beat: takes the claim that this process has once in a second, in another thread.
    """

    def __init__(self, folder: epath.Path):
        self._folder = folder
        self.on_beat: Callable[[Claim], None] | None = None
        # file -> its content, and when this process first saw that, by its own clock
        self._looks: dict[str, tuple[bytes, float]] = {}

    def file(self, address: str, number: int) -> epath.Path:
        return self._folder / RUNNING / f"{address}.{number}.json"

    def numbers(self) -> dict[str, int]:
        """Address -> the number that counts."""
        numbers: dict[str, int] = {}
        for name in storage.names_in(self._folder / RUNNING):
            if match := _NAME.fullmatch(name):
                numbers[match[1]] = max(int(match[2]), numbers.get(match[1], 0))
        return numbers

    def holders(self) -> dict[str, Holder]:
        """Address -> who has the trial, or had it when it died."""
        return {address: holder for address, (_, holder, _) in self._look().items()}

    def silent_holders(self) -> list[Holder]:
        """Who has a trial and gave no sign of life for PATIENCE seconds, as this process saw."""
        return [holder for _, holder, silence in self._look().values() if silence >= PATIENCE]

    @contextlib.contextmanager
    def take(self, address: str, trial: str) -> Iterator[Claim | None]:
        """Has the trial inside the block; None: another process has it.

        Args:
          trial: its name, for whoever asks what runs.
        """
        with contextlib.ExitStack() as stack:
            if not storage.is_remote(self._folder):
                lock = self._folder / "trials" / address / ".trial.lock"
                try:
                    stack.enter_context(lock_file(lock, busy="running"))
                except ValueError:
                    yield None
                    return
            claim = self._claim(address, trial)
            if claim is None:
                yield None
                return

            stack.callback(claim.release)
            stack.enter_context(signals.cleanup(claim.release))
            stack.enter_context(_beating(claim, self.on_beat))
            yield claim

    def _claim(self, address: str, trial: str) -> Claim | None:
        number = 0
        if address in (looks := self._look()):
            last_number, holder, silence = looks[address]
            # with its lock in hand, a process of this machine is dead
            is_ours = not storage.is_remote(self._folder) and holder.host == platform.node()
            if silence < PATIENCE and not is_ours:
                return None
            number = last_number + 1
        now = _now().isoformat(timespec="seconds")
        holder = Holder(trial, platform.node(), os.getpid(), since=now, last_sign=now)
        if not _create(self.file(address, number), _text(holder)):
            return None
        return Claim(self, address, number, holder)

    def _look(self) -> dict[str, tuple[int, Holder, float]]:
        """Address -> (number, holder, seconds for which this process saw no sign of life)."""
        claims, now = {}, time.monotonic()
        for address, number in self.numbers().items():
            file = self.file(address, number)
            try:
                content = file.read_bytes()
            except FileNotFoundError:  # released
                continue
            if file.name not in self._looks or self._looks[file.name][0] != content:
                self._looks[file.name] = (content, now)
            claims[address] = (number, _holder(content), now - self._looks[file.name][1])
        return claims


@contextlib.contextmanager
def _beating(claim: Claim, on_beat: Callable[[Claim], None] | None) -> Iterator[None]:
    """Renews the claim inside the block."""
    end = threading.Event()

    def work() -> None:
        last = time.monotonic()
        while not end.wait(1.0):
            # storage that does not answer: there is a next time
            if time.monotonic() - last >= BEAT:
                last = time.monotonic()
                with contextlib.suppress(Exception):
                    claim.renew()
            if on_beat is not None:
                with contextlib.suppress(Exception):
                    on_beat(claim)

    thread = threading.Thread(target=work, name="claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def _create(file: epath.Path, text: str) -> bool:
    """Makes a file if there is none of its name; whether it has made it."""
    if not storage.is_remote(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(file, "x", encoding="utf-8") as new:
                new.write(text)
        except FileExistsError:
            return False
        return True
    with storage.storage_errors(file, "write"):
        system, inside = fsspec.url_to_fs(os.fspath(file))
        try:
            system.pipe_file(inside, text.encode(), mode="create")
        except FileExistsError:  # perhaps made by an attempt whose answer was lost
            return file.read_text() == text
    return True


def _holder(content: bytes) -> Holder:
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):  # cut short by a kill, or being written
        return Holder("a trial", "a machine that it does not name", 0, since="?")


def _text(holder: Holder) -> str:
    content: dict[str, Any] = dataclasses.asdict(holder)
    return json.dumps(content) + "\n"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
