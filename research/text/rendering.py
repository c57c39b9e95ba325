"""Renders chat templates in a process of their own, with limits on time and memory.

All renderings of this process share one: it is started when it is first needed, again after a
template has used up its time, and ends with this process. Several views of a conversation travel
in one message, so that it costs about as much as rendering here.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import datetime
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any, cast

from research.text import template_process

# A template may write the date; the same conversation must give the same tokens on any day, in
# training and when the model is asked.
TRAINING_DAY = datetime.date(2024, 7, 26)
# How long one rendering may compute; the longest of real conversations take a hundredth of it.
SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class View:
    """The beginning of a conversation, and how it is rendered."""

    # Messages before this one.
    stop: int
    # Whether the text ends where the model is asked for an answer.
    ask: bool = False
    # (message, field, value) that differ from the conversation's; without a value: not there.
    changes: tuple[tuple[Any, ...], ...] = ()
    # Variables of the template that have other values.
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Those that are not given.
    without: tuple[str, ...] = ()
    # Whether the template is compiled alone; then there is no text.
    only_compile: bool = False


class RenderingError(ValueError):
    """A template is broken, refuses a conversation, or exceeds a limit."""


def render_views(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    views: Sequence[View],
) -> list[str | RenderingError]:
    """The text of each view of a conversation, or why there is none.

    Args:
      template: the Jinja program.
      messages: of the conversation, as the template reads them.
      variables: what else it reads, such as `tools` and `bos_token`.
      views: what is rendered.

    Raises:
      ValueError: a message or a variable is no JSON.
    """
    request = {
        "messages": messages,
        "variables": variables,
        "views": [vars(view) for view in views],
        "today": TRAINING_DAY.isoformat(),
    }
    return _process().render(template, request)


class _Process:
    """A running `template_process`."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._child: subprocess.Popen[bytes] | None = None
        # With which the last one ended.
        self._status = 0

    def render(self, template: str, request: Mapping[str, Any]) -> list[str | RenderingError]:
        """Answers of the process, in the order of the request's views."""
        with self._lock:
            results = self._exchange(template, request)
            if results is not None:
                return results
            # One of the views ended the process: the others are rendered without it.
            results = []
            for view in request["views"]:
                alone = self._exchange(template, {**request, "views": [view]})
                results += alone or [RenderingError(self._describe_end())]
            return results

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._numbers.clear()
            # -P: the program's own folder is no place to import from
            self._child = subprocess.Popen(
                [sys.executable, "-P", template_process.__file__, str(SECONDS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._child

    def _encode(self, template: str, request: Mapping[str, Any]) -> bytes:
        source = {} if template in self._numbers else {"source": template}
        number = self._numbers.get(template, len(self._numbers))
        try:
            line = json.dumps({"template": number, **source, **request})
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"it is no JSON: {error}") from None
        self._numbers[template] = number
        return line.encode() + b"\n"

    def _exchange(
        self, template: str, request: Mapping[str, Any]
    ) -> list[str | RenderingError] | None:
        """Answers to a request; None where the process ended before."""
        child = self._start()
        requests, answers = cast(IO[bytes], child.stdin), cast(IO[bytes], child.stdout)
        line = self._encode(template, request)
        with contextlib.suppress(BrokenPipeError):
            requests.write(line)
            requests.flush()
        answer = answers.readline()
        if not answer.endswith(b"\n"):
            self.close()
            return None
        results: list[str | RenderingError] = []
        before = ""
        for reply in json.loads(answer):
            if "text" in reply:
                before = before[: reply["same"]] + reply["text"]
                results.append(before)
            else:
                results.append(RenderingError(reply["error"]))
        return results

    def _describe_end(self) -> str:
        if self._status == -signal.SIGPROF:
            return f"it computes for more than {SECONDS:g} seconds"
        return f"the process that renders it ended with status {self._status}"

    def close(self) -> None:
        """Ends the process."""
        child, self._child = self._child, None
        if child is not None:
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):
                    cast(IO[bytes], pipe).close()
            try:
                child.wait(timeout=1)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            self._status = child.returncode


_shared: _Process | None = None


def _process() -> _Process:
    """The process of this one; a fork has one of its own."""
    global _shared
    if _shared is None or _shared.owner != os.getpid():
        _shared = _Process()
        atexit.register(_shared.close)
    return _shared
