"""A grammar in the tokens of a tokenizer, and the state of each row that it constrains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from llguidance import LLMatcher, LLParserLimits

from research.generation.constraints import completion
from research.generation.constraints.vocabulary import Vocabulary, unpack

# Bytes after which no more is looked for an end.
_MAX_BYTES = 16_384
# Bytes of a token at most, on average.
_BYTES_A_TOKEN = 5
# By how many tokens the shortest end grows at most with each token, on average.
_PACE = 8


class Constraint(Protocol):
    """What may come next in one row; `advance` moves it.

    What one of its calls raises ends its row, and no other: the answer is cut there.
    """

    def mask(self) -> np.ndarray:
        """[ceil(V/32)] uint32: bit t % 32 of word t // 32 is set where token t may come next.

        Raises:
          ValueError: nothing may, and what there is is no whole answer.
        """
        ...

    def advance(self, token: int) -> None:
        """Takes a token, one that ends included.

        Raises:
          ValueError: a token that may not come next.
        """
        ...

    @property
    def is_finished(self) -> bool:
        """Whether nothing may follow but the end."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether the tokens so far are a whole answer."""
        ...


class CompiledGrammar:
    """What a constraint allows, in the tokens of a tokenizer."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        grammar: str,
        size: int,
        growth: int | None,
        texts: Sequence[str],
    ):
        """See `ConstraintConfig` and its `compile`.

        Raises:
          ValueError: nothing that it allows has an end.
        """
        self.vocabulary, self.words = vocabulary, -(-size // 32)
        if len(vocabulary.tokens) > size:
            raise ValueError(
                f"the tokenizer has {len(vocabulary.tokens)} tokens, the model {size}: it is "
                "another model's"
            )
        limits = LLParserLimits(verbose_errors=False)
        # at its start; rows are copies of it
        self.matcher = LLMatcher(vocabulary.trie, grammar, log_level=0, limits=limits)
        if self.matcher.is_error():
            raise ValueError(f"grammar: {first_line(self.matcher)}")
        if texts:
            self.shortest_ids = min((self.encode(text.encode()) for text in texts), key=len)
        else:
            text = completion.complete(self.matcher, vocabulary, _MAX_BYTES)
            if text is None:
                raise ValueError(
                    "grammar: no answer that ends was found: it allows none of at most "
                    f"{_MAX_BYTES:,} bytes, or what must end it may be repeated in front of it too "
                    "(such as '([^a-z])*é'): leave that out of what repeats"
                )
            self.shortest_ids = self.encode(text)
        growth = max(16, len(self.shortest_ids)) if growth is None else growth
        # a free row has so many tokens more than its end needs
        self.reserve = 8 + growth
        self._is_searched = bool(texts)

    def shortest(self, enough: int = 0) -> int:
        """Tokens of the shortest answer that was found, its end included.

        Args:
          enough: no shorter one is looked for where one has so many.
        """
        if len(self.shortest_ids) + 1 > enough and not self._is_searched:
            text = completion.shorten(self.matcher, self.vocabulary, _MAX_BYTES, enough - 1)
            if text is not None:
                self.shortest_ids = min(self.shortest_ids, self.encode(text), key=len)
            self._is_searched = len(self.shortest_ids) + 1 > enough
        return len(self.shortest_ids) + 1

    def start(self, budget: int) -> GrammarConstraint:
        """The constraint of a row.

        Args:
          budget: most tokens of the row, the one that ends it included.

        Raises:
          ValueError: the shortest answer has more; says how many.
        """
        least = self.shortest(budget)
        if least > budget:
            raise ValueError(
                f"the constraint needs {least} tokens, its end included, and an answer may have "
                f"{budget}: set max_tokens to {least} at least"
            )
        return GrammarConstraint(self, budget)

    def encode(self, text: bytes) -> list[int]:
        """Tokens of a whole answer."""
        head = [self.vocabulary.ids[b" "]] if self.strips(text) else []
        return head + self.vocabulary.encode(text)

    def strips(self, text: bytes) -> bool:
        """Whether an answer's tokens need one more space in front of its text."""
        return self.vocabulary.strips_space and text[:1] == b" "


class GrammarConstraint:
    """A row under a grammar: a `Constraint`.

    It is free as long as an end fits with something to spare, and is led to that end then. How
    short the shortest end is gets looked up the more often, the nearer it is.
    """

    def __init__(self, grammar: CompiledGrammar, budget: int):
        self._grammar, self._vocabulary = grammar, grammar.vocabulary
        self._matcher = grammar.matcher.deep_copy()
        self._is_first, self._is_ended = True, False
        # tokens that it may still have, its end included
        self._remaining = budget
        # the tokens to its end, where it is led to it
        self._plan: list[int] | None = None
        # at how many remaining tokens its end is looked for
        self._next_look = budget
        self._look_ahead()

    @property
    def is_complete(self) -> bool:
        if self._plan is not None:
            return not self._plan
        return not self._matcher.is_error() and self._matcher.is_accepting()

    @property
    def is_finished(self) -> bool:
        if self._plan is not None:
            return not self._plan
        return self._is_ended or self._matcher.is_stopped()

    def mask(self) -> np.ndarray:
        vocabulary = self._vocabulary
        if self.is_finished:
            mask = vocabulary.end_mask
        elif self._plan is not None:
            mask = vocabulary.mask(self._plan[:1])
        else:
            # llguidance may give a word more than there are tokens for
            mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
            mask = mask[: len(vocabulary.text_mask)]
            mask = mask & (vocabulary.text_mask | vocabulary.end_mask)
            if self._matcher.is_error() or not mask.any():
                why = first_line(self._matcher)
                if why in ("", "NoExtensionBias"):  # it knows texts that no token begins
                    why = "the tokenizer has no token for what may"
                raise ValueError(f"nothing that the constraint allows can follow: {why}")
            if self._is_first and vocabulary.strips_space:
                mask = self._with_space(mask)
        return np.pad(mask, (0, self._grammar.words - len(mask)))

    def _with_space(self, mask: np.ndarray) -> np.ndarray:
        """The mask of the first token, whose space is no part of the text."""
        vocabulary, allowed = self._vocabulary, unpack(mask)
        spaced, plain = vocabulary.spaced_ids
        is_allowed = allowed & ~unpack(vocabulary.space_mask)
        is_allowed[spaced] = allowed[plain]
        is_allowed[vocabulary.ids[b" "]] = True
        return vocabulary.mask(np.flatnonzero(is_allowed).tolist())

    def advance(self, token: int) -> None:
        if token in self._vocabulary.ends:
            if not self.is_complete:
                raise ValueError(f"token {token} ends an answer that is not whole")
            self._is_ended = True
            return
        self._remaining -= 1
        if self._plan is not None:
            if self._plan[:1] != [token]:
                raise ValueError(f"token {token} may not come next, only {self._plan[:1]}")
            self._plan = self._plan[1:]
            return
        text = self._vocabulary.tokens[token]
        if self._is_first and self._vocabulary.strips_space and text[:1] == b" ":
            text = text[1:]
        self._is_first = False
        if text and not self._matcher.consume_token(self._vocabulary.ids[text]):
            raise ValueError(f"token {token} may not come next: {first_line(self._matcher)}")
        if self._remaining <= self._next_look:
            self._look_ahead()

    def _look_ahead(self) -> None:
        """Leads the row to its end where there is little to spare, or says when to look again."""
        most = self._remaining - 1
        plan = self._find_end(most)
        if plan is not None and most - len(plan) <= self._grammar.reserve:
            self._plan = plan
            return
        spare = 0 if plan is None else most - len(plan) - self._grammar.reserve
        self._next_look = self._remaining - max(1, spare // (1 + _PACE))

    def _find_end(self, most: int) -> list[int] | None:
        """At most so many tokens after which the row may end; None where none are found."""
        max_bytes = most * _BYTES_A_TOKEN
        for find in (completion.complete, completion.shorten):
            text = find(self._matcher, self._vocabulary, max_bytes, most)
            if text is None:
                break
            plan = self._grammar.encode(text) if self._is_first else self._vocabulary.encode(text)
            if len(plan) <= most:
                return plan
        if self._is_first and len(self._grammar.shortest_ids) <= most:
            return list(self._grammar.shortest_ids)
        return None


def first_line(matcher: LLMatcher) -> str:
    """Why a matcher is of no more use."""
    return matcher.get_error().strip().partition("\n")[0]
