"""Writing checkpoints: named arrays on any mesh, with metadata, metrics and small files.

A checkpoint is a flat `{name: jax.Array}` dict with per-layer names (`model/layers/7/...`), a
JSON-safe metadata dict, metrics and small files. On disk, written by Orbax:

    DIRECTORY/120/                 one folder per step
      files/metadata.json          config, fingerprints, versions
      files/metrics.json           metrics, numbers that are not finite as null
      files/arrays.json            name -> shape, dtype and two checksums of the content
      files/tokenizer.json ...     the caller's files
      files/digests.json           name -> sha256 of each of these files
      state/                       the arrays; `orbax.checkpoint.v1.load(folder)` reads them too
      commit_success.txt           written last, so a folder without it is not a checkpoint

Orbax writes into `120.orbax-checkpoint-tmp` and renames (on gs:// the marker alone decides), so
a run killed while saving leaves its earlier steps as they were. Reading is in
`research.checkpoints.checkpoint`.
"""

import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from research import __version__
from research.checkpoints import fingerprint
from research.checkpoints.checkpoint import (
    DIGESTS,
    OWN_FILES,
    Abstract,
    Arrays,
    Checkpoint,
    CheckpointError,
    advice,
    open_checkpoint,
    reason,
    sha256,
)
from research.checkpoints.removal import check_overwritable, remove_leftovers
from research.checkpoints.retention import Retention
from research.checkpoints.step_folders import describe_incomplete, scan
from research.runtime.files import check_no_link
from research.runtime.locks import LockLostError
from research.runtime.storage import absolute, describe_storage_error, is_remote

__all__ = ["CheckpointError", "Checkpointer", "Checkpoint", "library_versions", "open_checkpoint"]

log = logging.getLogger(__name__)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of Orbax's threads is not the error that `save` then raises."""
    if "orbax" in record.pathname:
        record.exc_info = None
        return "_SignalingThread.run() raised" not in record.getMessage()
    return True


def _drop_late_callbacks(event: "sys.UnraisableHookArgs") -> None:
    """TensorStore's threads report to an event loop of Orbax's that a failed save has closed."""
    if str(event.exc_value) != "Event loop is closed":
        _hook_before(event)


logging.getLogger("absl").addFilter(_is_news)
_hook_before, sys.unraisablehook = sys.unraisablehook, _drop_late_callbacks


class Checkpointer:
    """Writes a run's checkpoints and keeps the last and the best of them.

    One writer per directory. In a run of several processes, all of them make the same calls.

    Args:
      directory: local folder or gs:// prefix; made at the first save.
      keep_last: number of newest steps to keep.
      keep_best: number of best steps by `best_metric` to keep besides.
      best_metric: the name in `metrics` that decides; steps saved without it, or with a value
        that is not finite, are not ranked.
      best_mode: whether the smallest or the largest value is the best.
      asynchronous: write in the background. `save` returns once device memory may be reused.
      check: called before anything there is changed; it raises LockLostError where the directory is
        another process's by now, and nothing more is written or removed then.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_last: int = 2,
        keep_best: int = 0,
        best_metric: str | None = None,
        best_mode: Literal["min", "max"] = "min",
        asynchronous: bool = True,
        check: Callable[[], None] | None = None,
    ):
        self.directory = absolute(directory)
        self._retention = Retention(self.directory, keep_last, keep_best, best_metric, best_mode)
        self._best_metric = best_metric
        self._asynchronous = asynchronous
        self._check = check or (lambda: None)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[None]] | None = None
        self._cleaned = False
        self._reported: set[int] = set()

    def save(
        self,
        step: int,
        arrays: Mapping[str, jax.Array],
        metadata: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        files: Mapping[str, bytes | Path] | None = None,
        replace: bool = False,
    ) -> bool:
        """Starts saving one step, after waiting for the save before it.

        The arrays may be donated as soon as this returns. A step that is saved already, with the
        same arrays, does not change.

        Args:
          replace: write a step anew that is there with other arrays.

        Returns:
          Whether the step is being written; False if it was there.

        Raises:
          CheckpointError: this save, or the one before it, could not be written, or the step is
            there with other arrays.
          LinkError: the folder or the step's is a symbolic link.
          LockLostError: as of `check`.
          ValueError: a step before the latest one, arrays without elements or with 64-bit
            elements that JAX would cut, metadata that is not JSON, odd file names.
        """
        self.wait()
        self._check()
        steps = self.all_steps()
        path = self.directory / str(step)
        check_no_link(path, self.directory.parent)
        arrays = _validate(arrays)
        if step in steps:
            if _holds(path, arrays):
                log.info("step %d is already saved in %s", step, self.directory)
                return False
            if not replace:
                raise CheckpointError(
                    f"{path} is there already with other arrays than those to be saved, of another "
                    "run, or put there meanwhile: move it away and start the same command again"
                )
            log.warning("%s held other arrays than those of this run: it is written anew", path)
        elif step < 0 or (steps and step < steps[-1]):
            raise ValueError(
                f"cannot save step {step} in {self.directory}: it has step {steps[-1:]} already. "
                "Perhaps another process has gone on with this run: start again, and it goes on at "
                "that step; or save to another directory."
            )
        contents = self._contents(metadata, metrics, files)
        pending_sums = fingerprint.dispatch(arrays)

        def describe() -> bytes:
            sums = fingerprint.fetch(pending_sums).items()
            return _json_bytes({name: checksum._asdict() for name, checksum in sums})

        context = ocp.Context()
        # Make folders before returning: a full disk is then an error here, and not a time-out in
        # the writer's thread.
        context.asynchronous.create_directories_asynchronously = False
        # float32 weights hardly compress, and compressing takes five times as long as writing
        context.array.saving.use_compression = False
        # so that reading holds little beside the array itself
        context.array.saving.storage_options.chunk_byte_size = 2**26
        check_overwritable(path)
        try:
            self._remove_leftovers()
            self.directory.mkdir(parents=True, exist_ok=True)
            parts = {"state": arrays, "files": _Files(contents, describe)}
            with context:  # overwrites an incomplete folder of the same step
                response = ocp.save_checkpointables_async(path, parts, overwrite=path.exists())
        except Exception as error:
            raise self._save_error(step, error) from error
        self._pending = step, self._writer.submit(self._finish, response)
        if not self._asynchronous:
            self.wait()
        return True

    def wait(self) -> None:
        """Waits for the save in the background.

        Raises:
          CheckpointError: it failed. Reported once; the next save starts afresh.
          LockLostError: it failed, and the directory is another process's by now.
        """
        if self._pending is None:
            return
        step, future = self._pending
        try:
            future.result()
        except Exception as error:
            self._pending = None
            raise self._save_error(step, error) from error
        self._pending = None

    def close(self) -> None:
        """Waits and stops the writer's thread; raises what `wait` raises."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, LockLostError):
            self._writer.shutdown(wait=False, cancel_futures=True)
            return
        try:
            self.close()
        except (CheckpointError, LockLostError) as error:
            if kind is None:
                raise
            log.error("saving failed too: %s", error)  # the first error propagates

    def all_steps(self) -> list[int]:
        """The complete steps, ascending. Folders without commit marker are logged."""
        steps, incomplete = scan(self.directory)
        if self._pending is not None or jax.process_index() != 0:
            return steps  # an incomplete one may be a step that the writer is just removing
        for step in set(incomplete) - self._reported:
            log.warning("ignoring %s", describe_incomplete(self.directory / str(step), steps))
        self._reported.update(incomplete)
        return steps

    def latest_step(self) -> int | None:
        """The newest complete step."""
        return max(self.all_steps(), default=None)

    def best_step(self) -> int | None:
        """The complete step with the best `best_metric`; of equals the earliest."""
        return next(iter(self._retention.rank(self.all_steps())[0]), None)

    def at(self, step: int | None = None) -> Checkpoint:
        """The step (the latest if None) for reading; FileNotFoundError if it is not there."""
        return open_checkpoint(self.directory, step)

    def restore(
        self, step: int | None, abstract: Abstract, *, partial: bool = False, cast: bool = False
    ) -> Arrays:
        """`Checkpoint.restore` of the step, or of the latest if None."""
        return self.at(step).restore(abstract, partial=partial, cast=cast)

    def metadata(self, step: int | None = None) -> dict[str, Any]:
        """The metadata of the step, or of the latest if None."""
        return self.at(step).metadata()

    def files(self, step: int | None = None) -> dict[str, bytes]:
        """The files of the step, or of the latest if None."""
        return self.at(step).files()

    def _contents(
        self,
        metadata: Mapping[str, Any],
        metrics: Mapping[str, float] | None,
        files: Mapping[str, bytes | Path] | None,
    ) -> dict[str, bytes]:
        if metrics is not None and self._best_metric and self._best_metric not in metrics:
            raise ValueError(f"best_metric {self._best_metric!r} is not in {sorted(metrics)}")
        numbers = {name: float(value) for name, value in (metrics or {}).items()}
        contents = {
            "metadata.json": _json_bytes(dict(metadata)),
            "metrics.json": _json_bytes(
                {name: n if math.isfinite(n) else None for name, n in numbers.items()}
            ),
        }
        for name, content in (files or {}).items():
            if name in OWN_FILES or not re.fullmatch(r"\w[\w.+-]*", name):
                raise ValueError(
                    f"file name {name!r} in a checkpoint: expected letters, digits, '.', '_', "
                    f"'+' and '-', not a folder and none of {', '.join(OWN_FILES)}"
                )
            contents[name] = content if isinstance(content, bytes) else content.read_bytes()
        return contents

    def _finish(self, response: ocp.AsyncResponse[None]) -> None:
        """Runs in the writer's thread: waits for the commit, then removes old steps."""
        response.result()
        if jax.process_index() != 0:
            return
        try:
            self._check()
            self._retention.prune()
        except LockLostError:  # the next call says it
            return
        except OSError as error:
            log.warning("could not remove old checkpoints in %s: %s", self.directory, reason(error))

    def _remove_leftovers(self) -> None:
        """Removes leftovers of killed saves, once: later this writer cleans up after itself."""
        if not self._cleaned and jax.process_index() == 0:
            remove_leftovers(self.directory)
            self._cleaned = True

    def _save_error(self, step: int, cause: Exception) -> OSError:
        try:
            self._check()
        except LockLostError as error:  # that is why; nothing there is ours to remove
            return error
        message = f"could not save step {step} in {self.directory}: "
        refusal = describe_storage_error(cause, self.directory)
        if is_remote(self.directory) and refusal is not None:
            # nothing more is asked of storage that has just refused
            return CheckpointError(f"{message}{refusal}; the steps before are as they were")
        good = self.latest_step()
        self._cleaned = False
        try:
            self._remove_leftovers()  # frees the disk space of the failed save
        except OSError as error:
            log.warning("could not remove the failed save's files: %s", reason(error))
        return CheckpointError(
            f"{message}{reason(cause)}. "
            + (f"Step {good} there is still good. " if good is not None else "No step is saved. ")
            + f"{advice(cause)} and save again; the arrays in memory are unchanged."
        )


def library_versions() -> dict[str, str]:
    """Versions of Graft, Python and the libraries that a checkpoint's content depends on."""
    libraries = ("jax", "flax", "optax", "orbax-checkpoint")
    return {"graft": __version__, "python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in libraries
    }


class _Files:
    """Small files as a part of an Orbax checkpoint, so that they commit with the arrays.

    `describe` returns the content of arrays.json; it waits for the devices, so it is called in the
    background.
    """

    def __init__(self, contents: Mapping[str, bytes], describe: Callable[[], bytes]):
        self._contents = contents
        self._describe = describe

    async def save(self, directory: ocp.path.PathAwaitingCreation) -> Awaitable[None]:
        return self._write(directory)

    async def _write(self, directory: ocp.path.PathAwaitingCreation) -> None:
        folder = await directory.await_creation()
        contents = {**self._contents, "arrays.json": self._describe()}
        contents[DIGESTS] = _json_bytes({name: sha256(text) for name, text in contents.items()})
        if jax.process_index() == 0:
            for name, content in contents.items():
                (folder / name).write_bytes(content)

    async def load(self, directory: epath.Path) -> Awaitable[None]:
        raise NotImplementedError("read through Checkpoint")


def _holds(path: epath.Path, arrays: Arrays) -> bool:
    """Whether a step that is there has these arrays, by the checksums that were saved with it."""
    try:
        return Checkpoint(path).checksums() == fingerprint.checksums(arrays)
    except CheckpointError:
        return False


def _validate(arrays: Mapping[str, jax.Array]) -> Arrays:
    """Refuses arrays that Orbax would refuse half-way or JAX would restore as another type."""
    for name, array in arrays.items():
        if not isinstance(array, jax.Array | np.ndarray):
            raise ValueError(f"checkpoint entry {name!r} is a {type(array)}, not an array")
        if array.size == 0:
            raise ValueError(f"checkpoint entry {name!r} has no elements: shape {array.shape}")
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            raise ValueError(f"checkpoint entry {name!r} is {array.dtype}; JAX runs without x64")
    # A copy of NumPy memory, which its owner may write to while the save runs.
    return {n: a if isinstance(a, jax.Array) else jnp.array(a) for n, a in arrays.items()}


def _json_bytes(value: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"checkpoint metadata must be plain JSON: {error}") from error
