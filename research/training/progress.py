"""The progress bar of a run: step, loss, rate, share of the peak, time left."""

from __future__ import annotations

import collections
import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO

import jax
import tqdm

from research.training.observers import Observer

# takes (step, of how many, tokens per second or None) after each step, in the training's thread
StepSink = Callable[[int, int, float | None], None]


class Progress:
    """A progress bar: step, loss, tokens per second, time left, model-FLOPs utilisation.

    On a terminal it is a tqdm bar; elsewhere it prints a line every `interval` seconds and at the
    end. The rate is that of the last `WINDOW` updates. The first update only starts the clock, so
    that compilation does not count, and neither does what runs inside `pause()`. A stream that
    takes nothing (a terminal after Ctrl-S, a pipe that nobody reads) loses it.
    """

    WINDOW = 20
    REFRESH = 0.1  # seconds between two pictures of the bar

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        *,
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
        enabled: bool | None = None,
        stream: IO[str] | None = None,
        interval: float = 30.0,
        sink: StepSink | None = None,
    ) -> None:
        """Shows nothing yet.

        Args:
            total_steps: the step at which the run ends.
            start_step: steps already done.
            flops_per_token: model FLOPs that one trained token costs, forward and backward.
            peak_flops: FLOP/s of all devices together; see `peak_flops_per_second`.
            enabled: whether to show anything. Default: whether this is process 0.
            stream: default standard error.
            interval: seconds between lines where the stream is no terminal.
            sink: told of every step, whatever is shown.
        """
        self.total_steps = total_steps
        self.step = start_step
        # what is shown beside the loss, such as the last evaluation
        self.note = ""
        self._flops_share = flops_per_token / peak_flops if flops_per_token and peak_flops else None
        self._enabled = jax.process_index() == 0 if enabled is None else enabled
        self._stream = sys.stderr if stream is None else stream
        self._enabled = self._enabled and self._stream is not None  # None: it was closed at start
        self._interval, self._sink = interval, sink
        self._marks: collections.deque[tuple[float, int, int]] = collections.deque(
            maxlen=self.WINDOW + 1
        )
        self._tokens = 0
        self._paused = 0.0
        self._printed = -math.inf
        self._bar: tqdm.tqdm | None = None
        self._observer = Observer("the progress bar") if self._enabled else None
        if self._enabled and self._stream.isatty():
            self._push(lambda: self._open_bar(start_step))

    def update(self, step: int, loss: float, tokens: int, beside: str = "") -> None:
        """Reports that `step` steps are done, the last of them with `loss`.

        Args:
            step: steps done since the run's start.
            loss: mean loss of a trained token, or of an example.
            tokens: tokens read since the last update.
            beside: what else is shown of the step.
        """
        self._tokens += tokens
        self.step = step
        self._marks.append((time.monotonic() - self._paused, self._tokens, step))
        if self._sink is not None:
            self._sink(step, self.total_steps, self.tokens_per_second)
        if not self._enabled:
            return
        is_bar = self._stream.isatty()
        interval = self.REFRESH if is_bar else self._interval
        if step < self.total_steps and time.monotonic() - self._printed < interval:
            return
        self._printed = time.monotonic()
        text = self._describe(loss, beside)
        if is_bar:
            self._push(lambda: self._draw(step, text))
        else:
            line = f"step {step}/{self.total_steps}, {text}"
            self._push(lambda: print(line, file=self._stream, flush=True))

    @property
    def tokens_per_second(self) -> float | None:
        """Rate over the last updates; None before the second."""
        return self._rate(1)

    @property
    def flops_utilisation(self) -> float | None:
        """Share of the devices' peak FLOP/s that the model's FLOPs reach, or None if unknown."""
        rate = self.tokens_per_second
        return None if rate is None or self._flops_share is None else rate * self._flops_share

    @property
    def seconds_left(self) -> float | None:
        """Time left at the present rate, without pauses; None before the second update."""
        steps_per_second = self._rate(2)
        return (self.total_steps - self.step) / steps_per_second if steps_per_second else None

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Stops the clock, for an evaluation between two steps."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - start

    def close(self) -> None:
        if self._observer is not None:
            self._push(self._close_bar)
            self._observer.close()

    def _push(self, call: Callable[[], object]) -> None:
        if self._observer is not None:
            self._observer.push(call)

    def _open_bar(self, start_step: int) -> None:
        self._bar = tqdm.tqdm(
            total=self.total_steps,
            initial=start_step,
            file=self._stream,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
        )

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _draw(self, step: int, text: str) -> None:
        if self._bar is not None:
            self._bar.n = step  # `update` looks at the wall clock, which may be set back
            self._bar.set_postfix_str(text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rate(self, column: int) -> float | None:
        if len(self._marks) < 2:
            return None
        first, last = self._marks[0], self._marks[-1]
        return (last[column] - first[column]) / max(last[0] - first[0], 1e-9)

    def _describe(self, loss: float, beside: str) -> str:
        parts = [f"loss {loss:.4f}", *filter(None, (beside, self.note))]
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.flops_utilisation is not None:
            parts.append(f"{self.flops_utilisation:.1%} of peak FLOP/s")
        if self.seconds_left is not None:
            parts.append(f"{tqdm.tqdm.format_interval(self.seconds_left)} left")
        return ", ".join(parts)
