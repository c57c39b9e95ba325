"""The loop of one thread that owns the decoder; requests come to it through a queue.

engine = Engine(model, rows=8, max_waiting=512)
engine.submit(choices, deliver)     # from any thread
engine.run()                        # in the thread that owns JAX, until `close`
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from research.generation.decoder import Decoder, Request, Token
from research.models.cache import CacheKind
from research.serving.errors import RequestError
from research.serving.text import AnswerText
from research.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of the answers that a request asks for."""

    request: Request
    tokenizer: Tokenizer
    # texts that end it
    stops: tuple[str, ...] = ()
    # special tokens that are part of its text -> their names
    marker_tokens: Mapping[int, str] = dataclasses.field(default_factory=dict)


class Part(NamedTuple):
    """What is new of one of a request's answers."""

    # which of them
    choice: int
    text: str
    # tokens of the answer so far, one that ended it included
    tokens: int
    # why nothing follows; None: more does
    finish_reason: Literal["stop", "length"] | None


# Takes a part of an answer, or the error after which none follows; called in the engine's thread.
Deliver = Callable[[Part | RequestError], None]


class Job:
    """A request that was taken; `cancel` it in any thread."""

    def __init__(self, engine: Engine, choices: Sequence[Choice], deliver: Deliver):
        self.choices, self.deliver = tuple(choices), deliver
        self.is_cancelled = False
        self._engine = engine

    def cancel(self) -> None:
        """Drops what is not answered yet: its rows are free for others."""
        self.is_cancelled = True
        self._engine.wake()


@dataclasses.dataclass
class _Answer:
    """A choice that is being answered."""

    job: Job
    index: int
    text: AnswerText
    count: int = 0

    @property
    def request(self) -> Request:
        return self.job.choices[self.index].request


class Engine:
    """Answers jobs in the rows of one decoder.

    What goes wrong in the decoder ends the jobs that it had; the next one gets a new decoder.
    """

    def __init__(
        self,
        model: Any,
        rows: int,
        max_waiting: int = 512,
        cache_dtype: CacheKind | None = None,
    ):
        """
        Args:
          rows: answers that are written at a time.
          max_waiting: answers that wait for a row at most; more are refused.
          cache_dtype: how keys and values are stored; None: in the compute type.
        """
        self.rows, self.max_waiting = rows, max_waiting
        self._model, self._cache_dtype = model, cache_dtype
        # jobs that came, and None where there is something else to look at
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        # answers that were taken and have not ended
        self._open, self._is_closed = 0, False
        # by the decoder's ticket; of the thread that runs
        self._answers: dict[int, _Answer] = {}
        # jobs with answers that have not ended -> how many
        self._jobs: collections.Counter[Job] = collections.Counter()

    @property
    def open_answers(self) -> int:
        """Answers that are written, or wait for a row."""
        return self._open

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more requests."""
        return self._is_closed

    def submit(self, choices: Sequence[Choice], deliver: Deliver) -> Job:
        """Takes a request's choices, all or none.

        Raises:
          RequestError: too many wait, or the server ends.
        """
        job = Job(self, choices, deliver)
        with self._lock:
            if self._is_closed:
                raise RequestError("the server is ending", 503, code="server_ending")
            if self._open + len(choices) > self.rows + self.max_waiting:
                raise RequestError(
                    f"{self._open} answers are written or wait, and {len(choices)} more would be "
                    f"over {self.rows + self.max_waiting}: ask again later",
                    429,
                    code="queue_full",
                )
            self._open += len(choices)
            self._inbox.put(job)
        return job

    def wake(self) -> None:
        """Lets the loop look at what was cancelled."""
        self._inbox.put(None)

    def close(self) -> None:
        """Ends `run` from any thread; what is not answered gets an error."""
        with self._lock:
            self._is_closed = True
        self.wake()

    def run(self) -> None:
        """Answers jobs until `close`, inside `sharding.mesh_context` if rows are sharded."""
        decoder = self._new_decoder()
        while True:
            self._take(decoder, wait=not self._answers)
            if self._is_closed:
                break
            self._drop(decoder)
            try:
                for token in decoder.step():
                    self._advance(decoder, token)
            except Exception as error:  # whatever it is, later requests are answered
                log.exception("the decoder failed")
                self._fail(f"the model failed on this request or one beside it: {error}", 500)
                decoder = self._new_decoder()
        self._take(decoder, wait=False)  # the last that came before it was closed
        self._fail("the server ended before the answer did", 503)

    def _new_decoder(self) -> Decoder:
        return Decoder(self._model, self.rows, self._cache_dtype)

    def _take(self, decoder: Decoder, wait: bool) -> None:
        """Gives the decoder what has come; waits for something if there is nothing to do."""
        jobs: list[Job] = []
        try:
            while True:
                job = self._inbox.get(block=wait)
                wait = False
                if job is not None:
                    jobs.append(job)
        except queue.Empty:
            pass
        for job in jobs:
            self._jobs[job] = len(job.choices)
            try:
                for index, choice in enumerate(job.choices):
                    text = AnswerText(choice.tokenizer, choice.stops, choice.marker_tokens)
                    ticket = decoder.add(choice.request)
                    self._answers[ticket] = _Answer(job, index, text)
            except ValueError as error:
                self._end(decoder, job)
                job.deliver(RequestError(str(error)))
            except Exception as error:
                log.exception("a request was not taken")
                self._end(decoder, job)
                job.deliver(RequestError(f"the server failed on this request: {error}", 500))

    def _drop(self, decoder: Decoder) -> None:
        for job in [job for job in self._jobs if job.is_cancelled]:
            self._end(decoder, job)

    def _end(self, decoder: Decoder, job: Job) -> None:
        """Forgets a job and frees its rows."""
        for ticket in [t for t, answer in self._answers.items() if answer.job is job]:
            decoder.cancel(ticket)
            del self._answers[ticket]
        self._close_answers(job, self._jobs[job])

    def _close_answers(self, job: Job, count: int) -> None:
        self._jobs[job] -= count
        if not self._jobs[job]:
            del self._jobs[job]
        with self._lock:
            self._open -= count

    def _advance(self, decoder: Decoder, token: Token) -> None:
        """Delivers what a token adds to its answer."""
        answer = self._answers.get(token.ticket)
        if answer is None:  # its job ended at another of this step's tokens
            return
        if token.ending == "failure":
            self._end(decoder, answer.job)
            message = f"the answer ends where its constraint failed: {token.failure}"
            answer.job.deliver(RequestError(message, 500))
            return
        request, constraint = answer.request, answer.request.constraint
        answer.count += 1
        is_end = token.token in request.ends
        text = "" if is_end else answer.text.add(token.token)
        is_over = token.ending is not None or answer.text.is_stopped
        if not is_over and not text:
            return
        reason: Literal["stop", "length"] | None = None
        if is_over:
            text += answer.text.finish()
            reason = "stop" if token.ending == "end" or answer.text.is_stopped else "length"
            if constraint is not None and not answer.text.is_stopped and not constraint.is_complete:
                self._end(decoder, answer.job)
                message = "the answer came to where nothing that the schema allows may follow"
                answer.job.deliver(RequestError(message, 500))
                return
            del self._answers[token.ticket]
            self._close_answers(answer.job, 1)
            if token.ending is None:
                decoder.cancel(token.ticket)
        answer.job.deliver(Part(answer.index, text, answer.count, reason))

    def _fail(self, message: str, status: int) -> None:
        """Ends all jobs with an error."""
        for job, count in list(self._jobs.items()):
            self._close_answers(job, count)
            job.deliver(RequestError(message, status))
        self._answers.clear()
