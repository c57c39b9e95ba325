"""A short way to the end of a grammar, from where it stands."""

from __future__ import annotations

import collections
import dataclasses

from llguidance import LLMatcher

from research.generation.constraints.vocabulary import Vocabulary

# Bytes in the order in which they are tried: what closes in JSON, what is short, then the rest;
# and where letters may stand, within a text, what closes it.
_CLOSING = b'}]")>,:;.'
_PLAIN = b"0123456789nftabcdeghijklmopqrsuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_=+/[{(<| "
_REST = bytes(byte for byte in range(256) if byte not in _CLOSING + _PLAIN)
_ORDER = _CLOSING + _PLAIN + _REST
_IN_TEXT = b'"' + _PLAIN + _CLOSING.replace(b'"', b"") + _REST
# How many bytes are tried at a place: those of a text mostly do the same.
_TRIES = 12
# How many steps in a row may lead to what is known; how many bytes `shorten` walks at most.
_MAX_KNOWN, _MAX_SEARCH = 128, 4_000


@dataclasses.dataclass
class _Walk:
    """A way to an end."""

    text: bytearray
    # where more than one byte could follow: its place, and the others
    forks: list[tuple[int, bytes]]
    # whether it has come to the end
    is_whole: bool = False


def complete(
    matcher: LLMatcher, vocabulary: Vocabulary, max_bytes: int, enough: int = 0
) -> bytes | None:
    """Bytes after which an answer may end; None where none are found.

    A walk that tries bytes in a fixed order, prefers those that lead to a mask of tokens that it
    has not come across, and ends as soon as it may. So it finds its way out of what repeats, at
    some 100 microseconds a byte that is not forced; it is short, and not always the shortest.

    Args:
      matcher: where it stands; it is not moved.
      max_bytes: longer ones are not looked for.
      enough: see `shorten`; it does not matter here.
    """
    walk = _find(matcher, vocabulary, max_bytes)
    return None if walk is None else bytes(walk.text)


def _find(matcher: LLMatcher, vocabulary: Vocabulary, max_bytes: int) -> _Walk | None:
    """A way; from a dead end, the last places where another byte could follow are gone back to."""
    first = _walk(matcher, vocabulary, b"", max_bytes)
    if first.is_whole:
        return first
    last = _walk(matcher, vocabulary, b"", max_bytes, changes=True)
    if last.is_whole:
        return last
    for place, others in first.forks[: -_TRIES - 1 : -1]:
        for byte in others:
            start = bytes([*first.text[:place], byte])
            walk = _walk(matcher, vocabulary, start, max_bytes)
            if walk.is_whole:
                return walk
    return None


def shorten(
    matcher: LLMatcher, vocabulary: Vocabulary, max_bytes: int, enough: int
) -> bytes | None:
    """As `complete`, taking other bytes at one place after the other where that is shorter.

    Args:
      enough: tokens; no fewer are looked for.
    """
    best = _find(matcher, vocabulary, max_bytes)
    number, bytes_left = 0, _MAX_SEARCH
    while best is not None and number < len(best.forks):
        place, others = best.forks[number]
        number += 1
        for byte in others:
            if bytes_left < 0 or len(vocabulary.encode(bytes(best.text))) <= enough:
                return bytes(best.text)
            start = bytes([*best.text[:place], byte])
            bytes_left -= len(best.text)
            walk = _walk(matcher, vocabulary, start, len(best.text) - 1)
            if walk.is_whole:  # it is shorter, and the same up to this place
                best = walk
    return None if best is None else bytes(best.text)


def _walk(
    matcher: LLMatcher, vocabulary: Vocabulary, start: bytes, max_bytes: int, changes: bool = False
) -> _Walk:
    """A way that begins with `start`; `changes`: where all is known, not always the same byte."""
    matcher = matcher.deep_copy()
    walk, known = _Walk(bytearray(), []), {matcher.compute_bitmask()}
    counts: collections.Counter[tuple[bytes, int]] = collections.Counter()
    steps = 0  # since a mask that was not known
    while not matcher.is_error() and len(walk.text) <= max_bytes:
        place = len(walk.text)
        if place >= len(start) and matcher.is_accepting():
            walk.is_whole = True
            return walk
        forced = matcher.compute_ff_bytes() if place >= len(start) else b""
        if forced:
            if any(vocabulary.byte_ids[byte] < 0 for byte in forced):
                return walk
            matcher.consume_tokens(vocabulary.split(forced))
            walk.text += forced
            continue
        mask = matcher.compute_bitmask()
        allowed = _allowed(mask, vocabulary)
        if not allowed or (steps > _MAX_KNOWN and not changes):
            return walk
        if place < len(start):
            byte = start[place]
            matcher.consume_token(vocabulary.byte_ids[byte])
            known.add(matcher.compute_bitmask())
        elif (new := _step(matcher, vocabulary, allowed, known)) is not None:
            byte, steps = new, 0
        else:
            byte, steps = allowed[0], steps + 1
            if changes:
                byte = min(allowed, key=lambda each: counts[mask, each])
            counts[mask, byte] += 1
            matcher.consume_token(vocabulary.byte_ids[byte])
        others = bytes(each for each in allowed if each != byte)
        if others:
            walk.forks.append((place, others[:_TRIES]))
        walk.text.append(byte)
    return walk


def _step(
    matcher: LLMatcher, vocabulary: Vocabulary, allowed: bytes, known: set[bytes]
) -> int | None:
    """Takes the first byte that ends or leads to a mask that is not known; None: none does."""
    for byte in allowed[:_TRIES]:
        matcher.consume_token(vocabulary.byte_ids[byte])
        mask = matcher.compute_bitmask()
        if matcher.is_accepting() or mask not in known:
            known.add(mask)
            return byte
        matcher.rollback(1)
    return None


def _allowed(mask: bytes, vocabulary: Vocabulary) -> bytes:
    """The bytes that may come next, the best first."""

    def is_allowed(byte: int) -> bool:
        id = vocabulary.byte_ids[byte]
        return id >= 0 and bool(mask[id >> 3] & (1 << (id & 7)))

    order = _IN_TEXT if is_allowed(ord("j")) else _ORDER
    return bytes(byte for byte in order if is_allowed(byte))
