"""Metrics of a run, to JSONL and TensorBoard.

Only process 0 writes. A resumed run's `metrics.jsonl` equals an uninterrupted run's, apart from
what was measured with a clock.
"""

import contextlib
import errno
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from research.runtime import files, storage
from research.training.metric_steps import MetricSteps
from research.training.observers import Observer, TensorBoard

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class MetricsWriter:
    """Appends metrics to `workdir/metrics.jsonl` and to TensorBoard in `workdir/tensorboard`.

    Every line is one JSON object with `step`, flushed at once; a non-finite number is null, as JSON
    knows none. Lines of `start_step` and later, and a line torn by a kill, are dropped first: a run
    resumed at a step writes them again. In a bucket, where nothing can be appended to, they are
    copies of local files, renewed at each `mirror`, after MIRROR seconds and at the end.

    The JSONL is the run's record: `write` waits for the disk. TensorBoard and the copies are
    observers, for which it waits never, or MIRROR_SECONDS where a checkpoint is about to stand on
    them.
    """

    MIRROR = 30
    MIRROR_SECONDS = 120.0

    def __init__(
        self,
        workdir: str | Path,
        start_step: int = 0,
        enabled: bool | None = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Opens the files.

        Args:
            workdir: the run's folder; made if absent.
            start_step: the first step that this process will report.
            enabled: False makes every method do nothing. Default: whether this is process 0.
            check: called before each line; it raises where the folder is no longer the run's, and
                nothing more is written then.
        """
        self.enabled = jax.process_index() == 0 if enabled is None else enabled
        self.steps = MetricSteps()  # of the lines of the JSONL now
        self._check = check
        if not self.enabled:
            return
        folder = storage.absolute(workdir)
        self._remote = folder if storage.is_remote(folder) else None
        if self._remote:
            self._local = tempfile.TemporaryDirectory(prefix="graft-metrics-")
            if (folder / METRICS).exists():
                whole = (folder / METRICS).read_bytes()
                (Path(self._local.name) / METRICS).write_bytes(whole)
            folder = self._local.name
        path = Path(folder) / METRICS
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self.steps = MetricSteps(_drop_lines(path, start_step))
        self._folder, self._mirrored = path.parent, time.monotonic()
        self._path = path
        self._open()
        self._board = TensorBoard(path.parent / TENSORBOARD, start_step)
        self._copier = Observer(f"the copy of metrics in {workdir}") if self._remote else None
        self._is_refused = False  # by the bucket, since its last copy

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one line.

        Args:
            step: the train step that the metrics belong to.
            metrics: name -> scalar (a number or an array of size 1, which is waited for) or text,
                which only the JSONL gets. Names with a slash are grouped by TensorBoard.

        Raises:
            OSError: the disk is full, or the run's folder is gone; names the file, which is whole
              up to the line before.
        """
        if not self.enabled:
            return
        if self._check is not None:
            try:
                self._check()
            except OSError:
                self._abandon()
                raise
        line: dict[str, Any] = {"step": int(step)}
        scalars: dict[str, float] = {}
        for name, value in metrics.items():
            if isinstance(value, str):
                line[name] = value
                continue
            number = value if isinstance(value, int) else float(value)
            line[name] = number if math.isfinite(number) else None
            scalars[name] = number
        self._board.write(step, scalars)
        try:
            self._keep_file()
            self._size += self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
            self.steps.add(line)
        except files.LinkError:  # says what to do
            raise
        except OSError as error:
            advice = files.remedy(error)
            raise OSError(
                f"{self._path}: the metrics of step {step} could not be written: "
                f"{error.strerror or error}. {advice.capitalize()}, and start the same command "
                "again: it goes on at its last checkpoint"
            ) from error
        if self._copier and time.monotonic() - self._mirrored > self.MIRROR:
            self._mirrored = time.monotonic()
            self._copier.push(self._copy)

    def _open(self) -> None:
        """Opens the JSONL for lines at its end, and for what it has, should it be deleted."""
        self._file = self._path.open("a+", encoding="utf-8")
        self._size = os.fstat(self._file.fileno()).st_size

    def _keep_file(self) -> None:
        """Sees to it that the next line goes to the file of that name, and says what became of it.

        What was deleted is written again; a file that took its place, or was cut, is gone on with.

        Raises:
          OSError: the folder is gone.
        """
        try:
            there = self._path.lstat()
        except FileNotFoundError:
            if not self._folder.is_dir():
                message = "the folder of the run was deleted or moved"
                raise FileNotFoundError(errno.ENOENT, message) from None
            self._file.seek(0)
            content = self._file.read()
            files.atomic_write(self._path, content)
            log.warning("%s was deleted while the run writes it: it is written again", self._path)
        else:
            if os.path.samestat(there, os.fstat(self._file.fileno())):
                if there.st_size < self._size:
                    log.warning(
                        "%s was cut from %d to %d bytes while the run writes it: the run goes on "
                        "at its end, and what was cut is lost",
                        self._path,
                        self._size,
                        there.st_size,
                    )
                    self._reopen()
                return
            log.warning(
                "%s was replaced by another file while the run writes it: the run goes on at its "
                "end",
                self._path,
            )
        self._reopen()

    def _reopen(self) -> None:
        """Takes the file that is there now as the run's; of one that has another name elsewhere (a
        hard link) a copy, as a line more would be in that file too."""
        self._file.close()
        files.check_no_link(self._path, self._folder)
        self._open()
        if os.fstat(self._file.fileno()).st_nlink > 1:
            self._file.seek(0)
            content = self._file.read()
            self._file.close()
            files.atomic_write(self._path, content)
            log.warning("%s is a hard link: the run goes on in a copy of it", self._path)
            self._open()
        self._file.seek(0)
        text = self._file.read()
        self.steps = MetricSteps(_good_rows(text))
        if text and not text.endswith("\n"):
            self._file.write("\n")  # of a torn line, which is told when it is read

    def mirror(self) -> None:
        """Copies the files to the bucket, if the folder is in one, and waits for that a while; a
        failure is only logged, as the next copy is of the whole files."""
        if not self.enabled or not self._copier:
            return
        self._mirrored = time.monotonic()
        self._board.flush()
        self._copier.push(self._copy)
        if not self._copier.wait(self.MIRROR_SECONDS):
            log.warning("metrics are not copied to %s yet: it does not answer", self._remote)

    def _copy(self) -> None:
        assert self._remote is not None
        try:
            for file in self._folder.rglob("*"):
                if file.is_file():
                    copy = self._remote / file.relative_to(self._folder).as_posix()
                    copy.write_bytes(file.read_bytes())
            self._is_refused = False
        except Exception as error:  # gcsfs, aiohttp and Google's libraries each have their own
            if not self._is_refused:  # once, until it is taken again
                log.warning("metrics were not copied to %s: %s", self._remote, error)
            self._is_refused = True

    def _abandon(self) -> None:
        """Writes nothing from here on, not even what waits."""
        self.enabled = False
        for observer in (self._board, self._copier):
            if observer is not None:
                observer.abandon()

    def close(self) -> None:
        if self.enabled:
            self._board.close()
            self.mirror()
            if self._copier:
                self._copier.close()
            with contextlib.suppress(OSError):  # what could not be written has been said
                self._file.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Reads a `metrics.jsonl`; null becomes NaN, and a torn last line is left out.

    Raises ValueError that names the line where another line is broken.
    """
    rows = [row for row, _ in _read_lines(storage.absolute(path))]
    return [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]


def _read_lines(path: Any) -> Iterator[tuple[dict[str, Any], str]]:
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return  # the process died while it wrote this line
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not _is_row(row):
            raise ValueError(
                f"{path}, line {number}: not a JSON object with a step, a whole number; delete the "
                "line"
            )
        yield row, line.decode()


def _drop_lines(path: Path, start_step: int) -> list[dict[str, Any]]:
    """Drops lines of later steps; returns those that stay."""
    pairs = [(row, line) for row, line in _read_lines(path) if row["step"] < start_step]
    files.atomic_write(path, "".join(line for _, line in pairs))
    return [row for row, _ in pairs]


def _good_rows(text: str) -> Iterator[dict[str, Any]]:
    """The lines that can be read; the others are told when the file is read."""
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if _is_row(row):
                yield row


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and type(row.get("step")) is int and row["step"] >= 0
