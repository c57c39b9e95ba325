"""Answers to lists of requests, as many at a time as a decoder has rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from research.generation.decoder import Decoder, Request
from research.generation.sampling import GREEDY, Sampling

if TYPE_CHECKING:
    from research.generation.constraints import Constraint
    from research.models.cache import CacheKind


class Completion(NamedTuple):
    """What a request is answered."""

    # without the one that ended it
    tokens: list[int]
    # whether it was stopped before its end
    is_cut: bool
    # why its constraint failed, which stopped it; empty: it did not
    failure: str = ""
    # the token that ended it, which `tokens` have not; None: none of the request's ends did
    end: int | None = None


def complete(
    model: Any,
    requests: Sequence[Request],
    rows: int,
    is_over: Callable[[list[int]], bool] | None = None,
    on_end: Callable[[], object] | None = None,
    cache_dtype: CacheKind | None = None,
) -> list[Completion]:
    """Answers every request; those of about one length come together.

    Args:
      rows: requests that are answered at a time.
      is_over: tells by the tokens so far, after each, whether an answer ends there.
      on_end: is called whenever an answer has ended.
      cache_dtype: as of `Decoder`.

    Raises:
      ValueError: as `Decoder.add`.
    """
    decoder = Decoder(model, rows, cache_dtype)
    # the longest first: rows of about one length need the fewest slots
    order = sorted(range(len(requests)), key=lambda number: -len(requests[number].prompt))
    numbers = {decoder.add(requests[number]): number for number in order}
    answers: list[list[int]] = [[] for _ in requests]
    completions: list[Completion | None] = [None] * len(requests)
    while not decoder.is_idle:
        for ticket, token, ending, failure in decoder.step():
            number = numbers[ticket]
            request, answer = requests[number], answers[number]
            if token not in request.ends and ending != "failure":
                answer.append(token)
            has_ended = ending == "end" or (
                ending != "failure" and is_over is not None and is_over(answer)
            )
            if not has_ended and ending is None:
                continue
            if ending is None:
                decoder.cancel(ticket)
            is_cut = not has_ended
            if request.constraint is not None and not failure:
                is_cut = not request.constraint.is_complete
            end = token if token in request.ends and not failure else None
            completions[number] = Completion(answer, is_cut, failure, end)
            if on_end is not None:
                on_end()
    return [completion for completion in completions if completion is not None]


def stream(
    model: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    end_id: int,
    sampling: Sampling = GREEDY,
    adapter: np.ndarray | None = None,
    stops: Sequence[int] = (),
    constraints: Sequence[Constraint | None] | None = None,
    cache_dtype: CacheKind | None = None,
    on_failure: Callable[[int, str], object] | None = None,
) -> Iterator[np.ndarray]:
    """Yields the next token of every row, [B] int32, until all rows have ended.

    Args:
      model: a `Transformer`.
      prompts: B token sequences, begin token included, of any lengths from 1.
      new_tokens: most tokens to add to a row.
      end_id: a row that has generated this is finished and repeats only it.
      adapter: [B] which adapter each row uses.
      stops: other tokens that finish a row, such as the end of a turn.
      constraints: what each row may say.
      cache_dtype: as of `Decoder`.
      on_failure: is given a row whose constraint failed, which ends it, and why.

    Raises:
      ValueError: for an empty prompt, a text longer than the model's learned positions, or an
        adapter that its bank has not.
    """
    ends = frozenset({end_id, *stops})
    decoder = Decoder(model, len(prompts), cache_dtype)
    requests = _requests(prompts, new_tokens, ends, sampling, adapter, constraints)
    rows = {decoder.add(request): row for row, request in enumerate(requests)}
    while not decoder.is_idle:
        column = np.full(len(prompts), end_id, np.int32)
        for ticket, token, ending, failure in decoder.step():
            if ending != "failure":
                column[rows[ticket]] = token
            elif on_failure is not None:
                on_failure(rows[ticket], failure)
        yield column


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    end_id: int,
    sampling: Sampling = GREEDY,
    adapter: np.ndarray | None = None,
    stops: Sequence[int] = (),
    constraints: Sequence[Constraint | None] | None = None,
    cache_dtype: CacheKind | None = None,
    on_failure: Callable[[int, str], object] | None = None,
) -> list[list[int]]:
    """The new tokens of every prompt, without the token that ended it; see `stream`."""
    ends = frozenset({end_id, *stops})
    requests = _requests(prompts, new_tokens, ends, sampling, adapter, constraints)
    answers = complete(model, requests, len(prompts), cache_dtype=cache_dtype)
    for row, answer in enumerate(answers):
        if answer.failure and on_failure is not None:
            on_failure(row, answer.failure)
    return [answer.tokens for answer in answers]


def _requests(
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    ends: frozenset[int],
    sampling: Sampling,
    adapter: np.ndarray | None,
    constraints: Sequence[Constraint | None] | None,
) -> list[Request]:
    """A request for each prompt."""
    if not prompts:
        raise ValueError("a prompt holds no token; give at least the begin token")
    return [
        Request(
            prompt=list(prompt),
            new_tokens=new_tokens,
            ends=ends,
            sampling=sampling,
            number=number,
            adapter=None if adapter is None else int(adapter[number]),
            constraint=None if constraints is None else constraints[number],
        )
        for number, prompt in enumerate(prompts)
    ]
