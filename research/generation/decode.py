"""Answers to lists of prompts, all at once or as many at a time as a decoder has rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from research.generation.decoder import Decoder, Request
from research.generation.sampling import GREEDY, Sampling
from research.methods import bank

if TYPE_CHECKING:
    from research.generation.constraints import Constraint


def stream(
    model: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    end_id: int,
    sampling: Sampling = GREEDY,
    adapter: np.ndarray | None = None,
    stops: Sequence[int] = (),
    constraints: Sequence[Constraint | None] | None = None,
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

    Raises:
      ValueError: for an empty prompt, a text longer than the model's learned positions, or an
        adapter that its bank has not.
    """
    decoder, tickets = _start(
        model, prompts, new_tokens, {end_id, *stops}, sampling, adapter, constraints, None
    )
    rows = {ticket: row for row, ticket in enumerate(tickets)}
    while not decoder.is_idle:
        column = np.full(len(prompts), end_id, np.int32)
        for ticket, token, _ in decoder.step():
            column[rows[ticket]] = token
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
    rows: int | None = None,
    on_end: Callable[[int, list[int]], None] | None = None,
) -> list[list[int]]:
    """The new tokens of every prompt, without the token that ended it; see `stream`.

    Args:
      rows: prompts that are answered at a time; None: all.
      on_end: is called with the number of a prompt and its new tokens when it has ended.
    """
    ends = {end_id, *stops}
    decoder, tickets = _start(
        model, prompts, new_tokens, ends, sampling, adapter, constraints, rows
    )
    numbers = {ticket: number for number, ticket in enumerate(tickets)}
    answers: list[list[int]] = [[] for _ in prompts]
    while not decoder.is_idle:
        for ticket, token, is_last in decoder.step():
            number = numbers[ticket]
            if token not in ends:
                answers[number].append(token)
            if is_last and on_end is not None:
                on_end(number, answers[number])
    return answers


def _start(
    model: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    ends: set[int],
    sampling: Sampling,
    adapter: np.ndarray | None,
    constraints: Sequence[Constraint | None] | None,
    rows: int | None,
) -> tuple[Decoder, list[int]]:
    """A decoder with a request for each prompt, and their tickets."""
    if not prompts:
        raise ValueError("a prompt holds no token; give at least the begin token")
    if adapter is not None:
        bank.check_numbers(model, adapter)
    decoder = Decoder(model, rows or len(prompts), is_bank=adapter is not None)
    requests = {
        number: Request(
            prompt=prompt,
            new_tokens=new_tokens,
            ends=frozenset(ends),
            sampling=sampling,
            number=number,
            adapter=None if adapter is None else int(adapter[number]),
            constraint=None if constraints is None else constraints[number],
        )
        for number, prompt in enumerate(prompts)
    }
    # rows of about one length together need the fewest slots
    order = sorted(requests, key=lambda number: -len(prompts[number]))
    tickets = {number: decoder.add(requests[number]) for number in order}
    return decoder, [tickets[number] for number in range(len(prompts))]
