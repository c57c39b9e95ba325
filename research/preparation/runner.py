"""Runner of Beam pipelines: the one that Beam's own options name, or all cores of this machine.

On this machine it is Beam's FnApiRunner with as many processes as cores. It is what DirectRunner
comes down to for such pipelines, without first looking for a Prism server to download. What is
grouped by a key waits in the memory of the starting process, which is why stages send hashes and
numbers, and never text.
"""

import argparse
import builtins
import contextlib
import logging
import os
import queue
import re
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from research.config.suggestions import nearest_names
from research.runtime import children

ROOT = Path(__file__).resolve().parents[2]
# Beam's names of what works on this machine, as it compares them.
_LOCAL = ("direct", "directrunner", "switchingdirectrunner", "fnapirunner")
_WORKER = f"{__package__}.worker"
# seconds that a pipeline has to tell what a dead worker died of
_GRACE = 5.0
# As a traceback names errors of files and disks.
_OS_ERRORS = "|".join(
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, OSError)
)


def check_installed() -> None:
    """Raises ValueError with the command to install what is missing."""
    logging.disable(logging.WARNING)  # Beam says at once what it could do with more packages.
    try:
        import apache_beam  # noqa: F401
        import datasketch  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"The package {error.name} is not there: run `tools/setup prepare`; "
            "graft prepare then finds it by itself."
        ) from None
    finally:
        logging.disable(logging.NOTSET)


class Runner:
    """Runs pipelines to their end."""

    def __init__(self, options: Sequence[str] = ()):
        """`options`: Beam's own, such as `--runner=FlinkRunner` or `--direct_num_workers=4`.

        Raises:
            ValueError: Beam is not installed, or knows no such option.
        """
        check_installed()
        from apache_beam.options import pipeline_options

        _check_options(options)
        names = {option.partition("=")[0] for option in options}
        self._options = pipeline_options.PipelineOptions(list(options))
        name = self._options.view_as(pipeline_options.StandardOptions).runner
        self._is_local = name is None or name.rpartition(".")[2].lower() in _LOCAL
        direct = self._options.view_as(pipeline_options.DirectOptions)
        if self._is_local and "--direct_num_workers" not in names:
            direct.direct_num_workers = os.cpu_count() or 1
        processes = direct.direct_running_mode == "multi_processing" or (
            "--direct_running_mode" not in names and direct.direct_num_workers != 1
        )
        self._own_workers = self._is_local and processes
        if self._own_workers:  # else Beam makes others, whose death it does not notice
            direct.direct_running_mode = "in_memory"

    def run(self, build: Callable[[Any], object]) -> None:
        """Runs the pipeline that `build(root)` makes, and waits for its end.

        Raises:
            ValueError: a worker met a record that it could not read; says which.
            OSError: a worker could not read or write a file; says why.
            ChildProcessError: a worker process of this machine was killed, or is stopped.
            RuntimeError: anything else that ended it.
        """
        import apache_beam

        # Worker processes must find this package, and leave the cores to each other.
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if str(ROOT) not in paths:
            os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, paths)])
        if self._own_workers:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            os.environ[children.PARENT] = str(os.getpid())
        if self._is_local:  # The error below says all.
            for name in ("apache_beam", "grpc"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
        pipeline = apache_beam.Pipeline(runner=self._local_runner(), options=self._options)
        build(pipeline)
        try:
            if self._own_workers:
                state = _run_with_workers(lambda: pipeline.run().wait_until_finish())
            else:
                state = pipeline.run().wait_until_finish()
        except ChildProcessError:
            raise
        except Exception as error:
            # A worker in another process sends its traceback as text.
            message = f"{type(error).__name__}: {error}"
            if input_error := _last_error(message, "InputError", r"\n\n"):
                raise ValueError(input_error) from None
            if os_error := _last_error(message, _OS_ERRORS, r"\n"):
                raise OSError(os_error) from None
            raise
        if str(state) != "DONE":
            raise RuntimeError(f"The pipeline ended as {state}; the runner's log says why.")

    def for_each(self, items: Sequence[Any], function: Callable[[Any], object]) -> None:
        """Calls `function` with every item, on all workers; `items` as for `distribute`."""
        import apache_beam

        self.run(lambda root: distribute(root, items) | "Work" >> apache_beam.Map(function))

    def _local_runner(self) -> Any:
        """A runner of this machine's processes; None for the one that the options name."""
        if not self._is_local:
            return None
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner
        from apache_beam.transforms.environments import SubprocessSDKEnvironment

        if not self._own_workers:
            return FnApiRunner()
        # `exec`: else the worker's parent is a shell, which does not end with this process
        command = f"exec {shlex.quote(sys.executable)} -m {_WORKER}"
        return FnApiRunner(SubprocessSDKEnvironment.from_command_string(command))


def _run_with_workers(run: Callable[[], Any]) -> Any:
    """`_wait_with_workers`, with a folder in which each worker that Beam starts gives signs of
    life."""
    with tempfile.TemporaryDirectory(prefix="graft-prepare-") as folder:
        os.environ[children.HEARTBEAT] = folder
        try:
            return _wait_with_workers(run, _Signs(Path(folder)))
        finally:
            del os.environ[children.HEARTBEAT]


class _Signs:
    """Signs of life of all workers, in a folder: a file for each, named by its process."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._heartbeats: dict[str, children.Heartbeat] = {}

    def check(self) -> None:
        """Raises ChildProcessError if a worker gives none; for calls a second or less apart."""
        for file in self._folder.iterdir():
            heartbeat = self._heartbeats.setdefault(file.name, children.Heartbeat(file))
            if (silence := heartbeat.look()) > children.SILENCE_LIMIT:
                raise ChildProcessError(
                    f"a worker process ({file.name}) gave no sign of life for {silence:.0f} s: it "
                    "is stopped, or hangs; the same command goes on after the last finished stage"
                )


def _wait_with_workers(run: Callable[[], Any], signs: _Signs) -> Any:
    """What `run` returns or raises, unless a worker process dies or is stopped: Beam would wait
    for it for ever.

    Raises:
        ChildProcessError: a worker died, or gives no sign of life.
    """
    ends: queue.Queue[tuple[str, Any]] = queue.Queue()

    def work() -> None:
        try:
            ends.put(("state", run()))
        except Exception as error:
            ends.put(("error", error))

    def note_death(event: threading.ExceptHookArgs) -> None:
        # the thread of Beam's that waits for a worker process and raises its exit status
        if event.thread is not None and event.thread.name == "run_worker":
            ends.put(("death", event.exc_value))
        elif not event.exc_type.__module__.startswith("grpc"):  # the others' lost connections
            hook_before(event)

    hook_before, threading.excepthook = threading.excepthook, note_death
    try:
        threading.Thread(target=work, name="pipeline", daemon=True).start()
        while True:
            with contextlib.suppress(queue.Empty):
                kind, value = ends.get(timeout=children.BEAT)
                break
            signs.check()
        while kind == "death":  # the error that ended the worker, or the pipeline's end, says more
            death = value
            try:
                kind, value = ends.get(timeout=_GRACE)
            except queue.Empty:
                raise ChildProcessError(_describe_death(str(death))) from None
    finally:
        threading.excepthook = hook_before
    if kind == "error":
        raise value
    return value


def _describe_death(message: str) -> str:
    """The message of a worker's death, from Beam's, which ends with the exit status."""
    match = re.search(r"return code (-?\d+)", message)
    status = int(match[1]) if match else None
    why = f"ended ({message})" if status is None else f"ended with status {status}"
    if status in (-signal.SIGKILL, 128 + signal.SIGKILL):
        why = "was killed, as the kernel does when memory runs out"
    return f"a worker process {why} (fewer workers at once need less: -- --direct_num_workers=1)"


def distribute(root: Any, items: Sequence[Any]) -> Any:
    """Collection of the items, on all workers.

    `items` as a whole is part of the pipeline, which some runners limit to a few megabytes: many
    items must be a sequence that is small itself.
    """
    import apache_beam

    return (
        root
        | "Count" >> apache_beam.Create([len(items)])
        | "Numbers" >> apache_beam.FlatMap(lambda count: iter(range(count)))
        | "Spread" >> apache_beam.Reshuffle()
        | "Items" >> apache_beam.Map(items.__getitem__)
    )


def _check_options(options: Sequence[str]) -> None:
    """Raises ValueError for what Beam would ignore: an unknown option, or a wrong value."""
    from apache_beam.options import pipeline_options

    parser = pipeline_options._BeamArgumentParser(allow_abbrev=False, exit_on_error=False)
    for each in pipeline_options.PipelineOptions.__subclasses__():
        each._add_argparse_args(parser)
    try:
        _, unknown = parser.parse_known_args(list(options))
    except argparse.ArgumentError as error:
        raise ValueError(f"Apache Beam, after `--`: {error}") from None
    if unknown:
        name = unknown[0].partition("=")[0]
        options_of_beam = [name for action in parser._actions for name in action.option_strings]
        near = nearest_names(name, options_of_beam)
        raise ValueError(
            f"Apache Beam has no option {name!r}"
            + (f"; did you mean {near[0]!r}?" if near else ".")
            + " What follows `--` goes to it."
        )


def _last_error(message: str, errors: str, end: str) -> str:
    """Message of the last of these errors in a traceback, up to `end`; "" if there is none."""
    pattern = rf"\b(?:{errors}): (.*?)(?={end}|\s*\[while running|\Z)"
    messages = re.findall(pattern, message, re.DOTALL)
    return messages[-1].strip() if messages else ""
