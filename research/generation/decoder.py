"""Decoding many requests in the rows of one batch: a row that ends is given to the next request.

Prompts are computed together (prefill), beginnings that several have in common once; then every
row gets a token a step. Programs are compiled for a few sizes: prompts and caches are rounded up
(`research.batch.bucket_length`). What a request is answered does not depend on its row, nor on what
the other rows hold.
"""

from __future__ import annotations

import collections
import dataclasses
import os.path
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research import sharding
from research.batch import NO_ADAPTER, bucket_length
from research.generation import programs
from research.generation.sampling import GREEDY, Sampling
from research.methods import bank
from research.models.cache import Cache, CacheKind, KeyValues
from research.models.sites import Context

if TYPE_CHECKING:
    from research.generation.constraints import Constraint

# a beginning is a multiple of so many tokens, so that few programs serve many
BEGINNING = 32


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to go on from."""

    # token ids, begin token included
    prompt: list[int]
    # most tokens to add
    new_tokens: int
    # tokens that end it
    ends: frozenset[int] = frozenset()
    sampling: Sampling = GREEDY
    # its draws depend on this number, on the token's and on the seed, alone
    number: int = 0
    # of a bank's adapters, or `NO_ADAPTER`; None: the model is no bank
    adapter: int | None = None
    # what may be said; None: anything
    constraint: Constraint | None = None


class Token(NamedTuple):
    """A token of a request's answer."""

    ticket: int
    token: int
    # why nothing follows: it is one of the request's ends or its constraint lets nothing follow,
    # there are as many tokens as it may have, or its constraint failed, and then it is no part of
    # the answer; None: more follow
    ending: Literal["end", "length", "failure"] | None
    # why its constraint failed
    failure: str = ""


@dataclasses.dataclass
class _Row:
    """A request that is being answered."""

    ticket: int
    request: Request
    # tokens so far, and the position of the next one
    count: int
    position: int
    # why its constraint failed: the row ends, and no other
    failure: str = ""

    def mask(self) -> np.ndarray | None:
        """What its constraint lets come next; None: anything."""
        constraint = self.request.constraint
        if constraint is None:
            return None
        try:
            return constraint.mask()
        except Exception as error:  # whatever a grammar's library raises
            self.failure = _describe(error)
            return None

    def take(self, token: int) -> Token:
        """Takes the next token."""
        request, constraint = self.request, self.request.constraint
        self.count, self.position = self.count + 1, self.position + 1
        has_ended = token in request.ends
        if constraint is not None and not self.failure:
            try:
                constraint.advance(token)
                has_ended |= constraint.is_finished
            except Exception as error:
                self.failure = _describe(error)
        if self.failure:
            return Token(self.ticket, token, "failure", self.failure)
        if has_ended:
            return Token(self.ticket, token, "end")
        return Token(self.ticket, token, "length" if self.count == request.new_tokens else None)


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__


class _Beginning(NamedTuple):
    tokens: list[int]
    keys: KeyValues

    def begins(self, prompts: Sequence[list[int]]) -> bool:
        """Whether each prompt goes on from it."""
        size = len(self.tokens)
        return all(len(prompt) > size and prompt[:size] == self.tokens for prompt in prompts)


class Decoder:
    """Answers requests, as many at a time as it has rows.

    It runs inside `sharding.mesh_context`; rows are shared by the devices of the batch's axes.
    """

    def __init__(self, model: Any, rows: int, cache_dtype: CacheKind | None = None):
        """
        Args:
          model: a `Transformer`.
          rows: requests that are answered at a time; rounded up to what the devices divide.
          cache_dtype: how keys and values are stored; None: in the compute type.
        """
        shards = sharding.shard_count("batch") if sharding.has_rules() else 1
        self._model, self._cache_dtype = model, cache_dtype
        self._adapter_count = bank.adapter_count(model)
        self._rows: list[_Row | None] = [None] * (-(-rows // shards) * shards)
        self._shards = shards
        self._waiting: collections.deque[tuple[int, Request]] = collections.deque()
        self._tickets = 0
        self._beginnings: dict[int | None, _Beginning] = {}
        self._front = prompt_length(model)
        self._cache: Cache | None = None
        self._logits: Any = None

    def add(self, request: Request) -> int:
        """Takes a request; returns its ticket.

        Raises:
          ValueError: an empty prompt, a text longer than the model's learned positions, or an
            adapter that the model has not.
        """
        if not request.prompt:
            raise ValueError("a prompt holds no token; give at least the begin token")
        if request.new_tokens < 1:
            raise ValueError(f"new_tokens must be at least 1, not {request.new_tokens}")
        self._check_adapter(request.adapter)
        self._model.config.check_length(self._length(request))
        self._tickets += 1
        self._waiting.append((self._tickets, request))
        return self._tickets

    def cancel(self, ticket: int) -> None:
        """Drops a request, if it has not ended: its row is free for another."""
        self._waiting = collections.deque(pair for pair in self._waiting if pair[0] != ticket)
        self._rows = [None if row and row.ticket == ticket else row for row in self._rows]

    @property
    def is_idle(self) -> bool:
        """Whether every request has ended."""
        return not self._waiting and not any(self._rows)

    def block_until_ready(self) -> None:
        """Waits for what the device computes for the next step; for clocks alone."""
        jax.block_until_ready(self._logits)

    def step(self) -> list[Token]:
        """The next token of every request that has a row."""
        self._fill()
        active = [(number, row) for number, row in enumerate(self._rows) if row]
        if not active:
            return []
        tokens = self._draw()
        is_last_step = all(row.count + 1 == row.request.new_tokens for _, row in active)
        if self._cache is not None and not is_last_step:
            # computed while the host looks at the tokens
            positions = np.asarray([row.position if row else 0 for row in self._rows], np.int32)
            self._logits, new = programs.advance(
                self._model, tokens, positions, self._adapters(self._rows), self._cache.content
            )
            self._cache = programs.append(self._cache, new)
        values, result = np.asarray(tokens), []
        for number, row in active:
            result.append(row.take(int(values[number])))
            if result[-1].ending is not None:
                self._rows[number] = None
        return result

    def _check_adapter(self, adapter: int | None) -> None:
        if adapter is None and self._adapter_count:
            raise ValueError(
                f"the model is a bank of {self._adapter_count} adapters: say which a request uses, "
                "-1 is none"
            )
        if adapter is not None and not NO_ADAPTER <= adapter < self._adapter_count:
            raise ValueError(
                f"adapters [{adapter}]: the bank holds {self._adapter_count}, counted from 0; "
                "-1 is none"
            )

    def _length(self, request: Request) -> int:
        """Slots that a request needs."""
        return self._front + len(request.prompt) + request.new_tokens

    def _adapters(self, rows: Sequence[_Row | None]) -> np.ndarray | None:
        if not self._adapter_count:
            return None
        numbers = [row.request.adapter if row else NO_ADAPTER for row in rows]
        return np.asarray(numbers, np.int32)

    def _draw(self) -> jax.Array:
        """[B] int32, the next token of each row."""
        rows, none = self._rows, Request([0], 1)
        requests = [row.request if row else none for row in rows]
        settings = [request.sampling for request in requests]
        numbers = (
            np.asarray([each.seed for each in settings], np.int32),
            np.asarray([row.count if row else 0 for row in rows], np.int32),
            np.asarray([request.number for request in requests], np.int32),
            np.asarray([each.temperature for each in settings], np.float32),
            np.asarray([each.top_k for each in settings], np.int32),
            np.asarray([each.top_p for each in settings], np.float32),
        )
        masks = None
        if any(request.constraint for request in requests):
            masks = np.full((len(rows), -(-self._logits.shape[1] // 32)), 0xFFFFFFFF, np.uint32)
            for number, row in enumerate(rows):
                mask = None if row is None else row.mask()
                if mask is not None:
                    masks[number] = 0
                    masks[number, : len(mask)] = mask
        return programs.draw(self._logits, masks, *numbers)

    def _fill(self) -> None:
        """Gives free rows to waiting requests, and computes their prompts."""
        free = [number for number, row in enumerate(self._rows) if row is None]
        count = min(len(free), len(self._waiting))
        if not count:
            return
        new = [_Row(*self._waiting.popleft(), 0, 0) for _ in range(count)]
        self._make_room([self._length(row.request) for row in (*self._rows, *new) if row])
        groups = collections.defaultdict(list)
        for number, row in zip(free, new, strict=False):
            groups[row.request.adapter].append((number, row))
        together: list[tuple[int, _Row]] = []
        for adapter, members in groups.items():
            if beginning := self._find_beginning(adapter, [row for _, row in members]):
                self._prefill(members, beginning)
            else:
                together += members
        if together:
            self._prefill(together, None)

    def _make_room(self, lengths: Sequence[int]) -> None:
        """A cache in which each row can hold so many tokens."""
        slots = bucket_length(max(lengths))
        is_empty = not any(self._rows)
        if self._cache is None or (is_empty and 2 * slots <= self._cache.content.slots):
            count, dtype = len(self._rows), self._cache_dtype
            self._cache, self._logits = programs.empty_cache(self._model, count, slots, dtype)
        elif slots > self._cache.content.slots:
            self._cache = programs.resize(self._cache, slots)

    def _find_beginning(self, adapter: int | None, rows: Sequence[_Row]) -> _Beginning | None:
        """What all of these prompts, and those that wait for the same adapter, begin with."""
        prompts = [row.request.prompt for row in rows]
        waiting = [each.prompt for _, each in self._waiting if each.adapter == adapter]
        everyone = prompts + waiting
        shortest = min(map(len, everyone)) - 1  # a prompt's last token is computed with it
        common = list(os.path.commonprefix(everyone)[:shortest]) if len(everyone) > 1 else []
        size = len(common) // BEGINNING * BEGINNING
        known = self._beginnings.get(adapter)
        if known and 2 * len(known.tokens) >= size and known.begins(prompts):
            return known
        if not size:
            return None
        tokens = np.asarray([common[:size]], np.int32)
        adapters = None if adapter is None else np.asarray([adapter], np.int32)
        _, keys = programs.prefill(self._model, tokens, np.asarray([size]), adapters, None, 0)
        self._beginnings[adapter] = _Beginning(common[:size], keys)
        return self._beginnings[adapter]

    def _prefill(self, members: Sequence[tuple[int, _Row]], beginning: _Beginning | None) -> None:
        """Computes the prompts of rows, behind what they begin with."""
        assert self._cache is not None
        count = 1 << (len(members) - 1).bit_length()  # few sizes
        count = min(-(-count // self._shards) * self._shards, len(self._rows))
        start = len(beginning.tokens) if beginning else 0
        prompts = [row.request.prompt[start:] for _, row in members]
        tokens = np.zeros((count, bucket_length(max(map(len, prompts)), BEGINNING)), np.int32)
        lengths = np.ones(count, np.int32)
        for place, prompt in enumerate(prompts):
            tokens[place, : len(prompt)] = prompt
            lengths[place] = len(prompt)
        numbers = [number for number, _ in members]
        numbers += [len(self._rows)] * (count - len(members))  # of no row
        rows: list[_Row | None] = [row for _, row in members]
        rows += [None] * (count - len(members))
        adapters = self._adapters(rows)
        # a prompt method's tokens stand in front, and positions restart after them
        front = np.full(count, self._front)
        if adapters is not None:
            front = np.where(adapters >= 0, self._front, 0)
        earlier = None if beginning is None else beginning.keys
        first = start + front if beginning else np.zeros(count, np.int32)
        logits, new = programs.prefill(
            self._model, tokens, lengths, adapters, earlier, first.astype(np.int32)
        )
        slots = lengths + (self._front + start)
        self._cache, self._logits = programs.insert(
            self._cache,
            self._logits,
            np.asarray(numbers, np.int32),
            new,
            slots.astype(np.int32),
            earlier,
            logits,
        )
        for place, (number, row) in enumerate(members):
            row.position = int(start + front[place] + lengths[place])
            self._rows[number] = row


def prompt_length(model: Any) -> int:
    """Number of prompt tokens that the embedding's site puts in front of a row."""
    one, row = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1, 1), (1,)))

    def embed(model: Any, tokens: jax.Array, adapter: jax.Array) -> jax.Array:
        return model.embedding(tokens, jnp.float32, Context(adapter=adapter))

    return jax.eval_shape(embed, model, one, row).shape[1] - 1
