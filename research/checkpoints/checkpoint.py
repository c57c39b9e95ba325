"""Reading checkpoints: one committed step folder, opened without changing anything on disk.

`research.checkpoints.checkpointer` writes step folders and describes their layout. Every restored
array is compared with the checksums stored at saving: Orbax notices a file that is missing or
truncated, but not one whose bytes have changed.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from research.checkpoints import fingerprint
from research.checkpoints.fingerprint import Checksum
from research.checkpoints.step_folders import MARKERS, is_committed, last_phase, scan
from research.runtime.files import check_no_link, remedy
from research.runtime.storage import (
    absolute,
    describe_storage_error,
    is_folder,
    is_remote,
)
from research.tree import check_names, nearest

Arrays = dict[str, jax.Array]
Abstract = Mapping[str, jax.ShapeDtypeStruct]

# bytes of chunks in flight while one array is read; chunks have 64 MiB at most
_READ_AHEAD = 2**28
# sha256 of each of the small files, by name; checkpoints of old have none
DIGESTS = "digests.json"
OWN_FILES = ("metadata.json", "metrics.json", "arrays.json", DIGESTS)


class CheckpointError(OSError):
    """A checkpoint that cannot be written or read; the message names the folder and the remedy.

    Attributes:
      detail: the file and what is wrong with it, alone; the message where nobody says.
    """

    def __init__(self, message: str, detail: str = ""):
        super().__init__(message)
        self.detail = detail or message


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One committed step folder, read only."""

    path: epath.Path

    @property
    def step(self) -> int:
        """The step in the folder's name (ValueError if the folder was renamed)."""
        return int(self.path.name)

    def metadata(self) -> dict[str, Any]:
        """The metadata that was passed to `save`."""
        return self._json("metadata.json")

    def check_step(self) -> None:
        """Refuses a folder whose number is not that of the step in it: it was renamed.

        A folder without a number was copied out of a run, and is taken as it is.

        Raises:
          ValueError: naming both.
          CheckpointError: the step cannot be read.
        """
        if not self.path.name.isdecimal():
            return
        step = self.metadata().get("step")
        if step is None and "step" in self.checksums():  # of old; a model alone has none
            step = int(self.read("step")["step"])
        if step is not None and step != self.step:
            raise ValueError(
                f"{self.path} holds step {step}, not {self.step}: it was renamed, or copied to the "
                f"place of another step; rename it to {step}"
            )

    def metrics(self) -> dict[str, float | None]:
        """The metrics that were passed to `save`; None stands for a number that is not finite."""
        return self._json("metrics.json")

    def files(self) -> dict[str, bytes]:
        """The contents of the files that were passed to `save`, by name.

        Raises:
          LinkError: one is a symbolic link; it could bring any file of this machine into a run.
          CheckpointError: they cannot be read.
        """
        try:
            names = sorted(path.name for path in (self.path / "files").iterdir())
        except Exception as error:  # gcsfs, aiohttp and Google's libraries each have their own
            raise self.unreadable(error) from error
        return {name: self._read_file(name) for name in names if name not in OWN_FILES}

    def checksums(self, prefix: str = "") -> dict[str, Checksum]:
        """The stored checksums of the arrays under `prefix`, by name without it."""
        entries = self._json("arrays.json")
        with self.errors_in("arrays.json"):
            return {
                name.removeprefix(prefix): Checksum(
                    tuple(entry["shape"]),
                    jnp.dtype(entry["dtype"]).name,
                    (entry["sums"][0], entry["sums"][1]),
                )
                for name, entry in entries.items()
                if name.startswith(prefix)
            }

    def fingerprint(self, prefix: str = "") -> str:
        """The fingerprint of the arrays under `prefix`, from the checksums only.

        `fingerprint("model/")` equals that of `{name: array}` with names without `model/`.
        """
        return fingerprint.combine(self.checksums(prefix))

    def abstract(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Names, shapes and dtypes of the stored arrays, without shardings."""
        return {
            name: jax.ShapeDtypeStruct(checksum.shape, jnp.dtype(checksum.dtype))
            for name, checksum in self.checksums().items()
        }

    def restore(self, abstract: Abstract, *, partial: bool = False, cast: bool = False) -> Arrays:
        """Reads the arrays that `abstract` names, each onto its sharding there.

        Args:
          abstract: name -> shape, dtype and sharding (none: the first local device). The mesh
            may differ from the one that the arrays were saved from.
          partial: read only these names, and allow others in the file.
          cast: convert floating-point arrays to the dtype in `abstract`. Otherwise, and for all
            other types, a difference is an error: a silent bfloat16 master weight costs a run.

        Raises:
          ValueError: names, shapes or dtypes that do not fit, listed.
          CheckpointError: files missing, truncated or changed.
        """
        checksums = self.checksums()
        file_arrays = self.abstract()
        _check_fit(abstract, file_arrays, partial, cast, f"arrays of checkpoint {self.path}")
        if not abstract:
            return {}
        default_sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = {
            name: jax.ShapeDtypeStruct(
                file_arrays[name].shape,
                file_arrays[name].dtype,
                sharding=array.sharding or default_sharding,
            )
            for name, array in abstract.items()
        }
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        _silence_late_errors()
        try:
            with context:
                arrays: Arrays = ocp.load(self.path, target)
        except jax.errors.JaxRuntimeError:  # the device's trouble (memory), not the file's
            raise
        except Exception as error:  # Orbax and TensorStore raise many kinds, bare Exception too
            raise self.unreadable(error) from error
        self._check_content(arrays, checksums)
        return {
            name: array
            if array.dtype == abstract[name].dtype
            else jax.device_put(array.astype(abstract[name].dtype), array.sharding)
            for name, array in arrays.items()
        }

    def read(self, *names: str) -> dict[str, np.ndarray]:
        """Reads arrays on the host, with little memory beside them.

        Raises:
          ValueError: no such array.
          CheckpointError: files missing, truncated or changed.
        """
        checksums = self.checksums()
        for name in names:
            if name not in checksums:
                near = nearest(name, checksums, 1)
                raise ValueError(
                    f"checkpoint {self.path} has no array {name} (nearest there: {near})"
                )
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        context.memory.read_concurrent_bytes = _READ_AHEAD
        target = {  # pages that are never written take no memory
            name: np.empty(checksums[name].shape, jnp.dtype(checksums[name].dtype))
            for name in names
        }
        if not target:
            return {}
        _silence_late_errors()
        try:
            with context:
                arrays: dict[str, np.ndarray] = ocp.load(self.path, target)
        except Exception as error:  # Orbax and TensorStore raise many kinds, bare Exception too
            raise self.unreadable(error) from error
        self._check_content(arrays, checksums)
        return arrays

    def _check_content(self, arrays: Mapping[str, Any], checksums: Mapping[str, Checksum]) -> None:
        """Raises CheckpointError for arrays whose checksums are not those stored at saving."""
        content = fingerprint.checksums(arrays)
        damaged_names = sorted(name for name in arrays if content[name] != checksums[name])
        if damaged_names:
            more = f" and {len(damaged_names) - 8} more" if len(damaged_names) > 8 else ""
            names = ", ".join(damaged_names[:8])
            raise self.unreadable(f"the content of {names}{more} has changed")

    @contextlib.contextmanager
    def errors_in(self, name: str) -> Iterator[None]:
        """What a damaged small file makes fail while it is understood, as its CheckpointError."""
        try:
            yield
        except KeyError as error:
            raise self.unreadable(f"files/{name}: there is no {error}") from error
        except (ValueError, TypeError, AttributeError, IndexError) as error:
            raise self.unreadable(error, f"files/{name}: ") from error

    def _json(self, name: str) -> dict[str, Any]:
        content = self._read_file(name)
        with self.errors_in(name):
            value = json.loads(content)
            if not isinstance(value, dict):
                raise ValueError(f"{value!r:.40} is no JSON object")
        return value

    @functools.cached_property
    def _digests(self) -> dict[str, str] | None:
        """sha256 of the small files, by name; None: it is a checkpoint of old."""
        return self._json(DIGESTS) if (self.path / "files" / DIGESTS).exists() else None

    def _read_file(self, name: str) -> bytes:
        path = self.path / "files" / name
        check_no_link(path, self.path)
        try:
            content = path.read_bytes()
        except Exception as error:  # gcsfs, aiohttp and Google's libraries each have their own
            raise self.unreadable(error, f"files/{name}: ") from error
        digests = None if name == DIGESTS else self._digests
        if digests is not None and digests.get(name) != sha256(content):
            raise self.unreadable(f"files/{name} is not what was saved")
        return content

    def unreadable(self, cause: Exception | str, where: str = "") -> CheckpointError:
        """The error for what cannot be read: the folder, the cause and the steps beside it."""
        message = f"checkpoint {self.path} cannot be read: {where}"
        if isinstance(cause, Exception) and is_remote(self.path):
            refusal = describe_storage_error(cause, self.path)
            if refusal is not None:
                return CheckpointError(message + refusal)
        others = [step for step in scan(self.path.parent)[0] if str(step) != self.path.name]
        instead = (
            f"move this folder away to fall back to step {others[-1]} (steps left: {others})"
            if others
            else "no other step is beside it: copy the folder again from its source, or start over"
        )
        detail = f"{where}{reason(cause)}"
        return CheckpointError(
            f"{message}{reason(cause)}. A file in it is missing, cut short or changed; {instead}.",
            detail,
        )


def open_checkpoint(path: str | os.PathLike[str], step: int | None = None) -> Checkpoint:
    """Opens a step for reading, given a run's workdir, its checkpoints folder or a step folder.

    Changes nothing on disk, so it is safe beside a run that is writing there. Takes the latest
    step unless `step` is given.

    Raises:
      FileNotFoundError: no checkpoint there, or not that step.
      CheckpointError: a step folder whose save was never completed.
    """
    folder = absolute(path)
    if is_folder(folder / "state") or any((folder / marker).exists() for marker in MARKERS):
        if not is_committed(folder):
            raise CheckpointError(
                f"{folder} is not a complete checkpoint: {' or '.join(MARKERS)} is missing, so "
                f"its save was cut short. Complete steps beside it: {scan(folder.parent)[0]}."
            )
        if step is not None and str(step) != folder.name:
            raise FileNotFoundError(f"{folder} is one step's folder, but step {step} was asked for")
        return Checkpoint(folder)
    folder = last_phase(folder)
    for name in ("checkpoints", "model"):  # a run that can resume, or only the finished weights
        if is_folder(folder / name):
            folder = folder / name
            break
    steps, incomplete_steps = scan(folder)
    if not steps:
        note = f" (incomplete steps, not usable: {incomplete_steps})" if incomplete_steps else ""
        if (folder / "config.json").exists() or folder.suffix == ".gguf":
            note = " (a model of another project: graft convert import makes a run of it)"
        elif not folder.exists():
            note = " (there is no such folder)"
        raise FileNotFoundError(
            f"no checkpoint in {folder}{note}; expected a run's workdir, its checkpoints folder "
            "or one step's folder"
        )
    if step is not None and step not in steps:
        note = " (its save was cut short)" if step in incomplete_steps else ""
        raise FileNotFoundError(f"no step {step} in {folder}{note}; complete steps: {steps}")
    return Checkpoint(folder / str(steps[-1] if step is None else step))


def sha256(content: bytes) -> str:
    """The digest of a small file."""
    return hashlib.sha256(content).hexdigest()


def _check_fit(
    abstract: Abstract, file_arrays: Abstract, partial: bool, cast: bool, what: str
) -> None:
    """Raises ValueError with a list of names, shapes and dtypes that do not fit the file."""
    if not partial:
        check_names(abstract, file_arrays, what)
    problems = [
        f"missing {name} (nearest there: {nearest(name, file_arrays, 1)})"
        for name in sorted(set(abstract) - set(file_arrays))
    ]
    for name in sorted(set(abstract) & set(file_arrays)):
        expected, actual = abstract[name], file_arrays[name]
        is_castable = cast and all(
            jnp.issubdtype(array.dtype, jnp.floating) for array in (expected, actual)
        )
        if expected.shape != actual.shape:
            problems.append(f"{name}: shape {actual.shape} in the file, {expected.shape} asked for")
        elif expected.dtype != actual.dtype and not is_castable:
            problems.append(f"{name}: {actual.dtype} in the file, {expected.dtype} asked for")
    if problems:
        more = [f"and {len(problems) - 16} more"] if len(problems) > 16 else []
        raise ValueError(f"{what} do not fit:\n  " + "\n  ".join(problems[:16] + more))


@functools.cache
def _silence_late_errors() -> None:
    """Silences what TensorStore and asyncio print around the error of a read, from here on.

    When one array cannot be read, those that are read beside it have nobody who waits for them:
    callbacks find Orbax's event loop closed, and asyncio tells of each error by itself.
    """
    print_unraisable = sys.unraisablehook

    def report(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            print_unraisable(unraisable)

    def is_news(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not ("exception was never retrieved" in message and "orbax" in message)

    sys.unraisablehook = report
    logging.getLogger("asyncio").addFilter(is_news)


def _first_error(cause: Exception) -> Exception:
    """The first error in a chain."""
    while isinstance(
        earlier := cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__),
        Exception,
    ):
        cause = earlier
    return cause


def advice(cause: Exception) -> str:
    """What to do about an error of writing, for its message."""
    error = _first_error(cause)
    if isinstance(error, OSError) and error.errno is not None:
        return remedy(error).capitalize()
    return "Free disk space or mend access to that directory"


def reason(cause: Exception | str) -> str:
    """One short line for the first error in a chain; TensorStore's run to several kilobytes."""
    if isinstance(cause, str):
        return cause
    cause = _first_error(cause)
    lines = str(cause).split(" [tensorstore_spec")[0].splitlines() or [""]
    return f"{type(cause).__name__}: {lines[0]}"[:400]
