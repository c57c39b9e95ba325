"""Say the spans that are missing from a text (T5, Raffel 2020)."""

import dataclasses
from typing import Literal

import numpy as np

from research.objectives import markers
from research.objectives.base import Examples, Objective, Piece
from research.objectives.windows import Windows, uniform
from research.text.token_table import TokenTable
from research.text.tokenizer import Tokenizer

_SLOT = "{number}"


@dataclasses.dataclass(frozen=True)
class SpanCorruption(Objective):
    """Random spans are each replaced by a sentinel, and said after it (arXiv:1910.10683).

    A decoder has no encoder to read the corrupted text, so it is a prefix that is read both ways.
    A text `a b c d e f` of which `b c` and `f` are hidden becomes

        begin a S0 d e S1 | S0 b c S1 f end

    and what stands after the bar is trained on, the sentinels too. As in T5's code, a text starts
    with a span that is kept and ends with one that is hidden; their numbers follow from its length
    alone, and every way to divide it into them is equally likely. A document longer than a row is
    cut into windows first. A window of fewer than two tokens cannot keep one and hide one, and is
    left out.

    There are no bits per byte: what is hidden is a sample of the text, told by the rest of it, and
    the sentinels say where it goes.
    """

    # Share of a text's tokens that is hidden, in (0, 1).
    rate: float = 0.15
    # Mean number of tokens of a hidden span.
    mean_span: float = 3.0
    # The sentinel of a span, with `{number}` once: special tokens of the tokenizer, as in T5, or
    # text that the data never holds.
    sentinel: str = "<extra_id_{number}>"
    # Decides which spans are hidden.
    seed: int = 0

    kind: Literal["span_corruption"] = "span_corruption"

    @property
    def bidirectional(self) -> bool:
        """Always."""
        return True

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"rate must be between 0 and 1, not {self.rate}.")
        if not 1 <= self.mean_span < np.inf:
            raise ValueError(f"mean_span must be at least 1, not {self.mean_span}.")
        if self.sentinel.count(_SLOT) != 1:
            raise ValueError(
                f"The sentinel must hold {_SLOT} exactly once, not "
                f"{self.sentinel.count(_SLOT)} times: {self.sentinel!r}."
            )

    def spans(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hidden tokens and hidden spans of texts of these lengths; none below two tokens."""
        hidden_counts = np.clip(np.rint(lengths * self.rate), 1, np.maximum(lengths - 1, 1))
        visible_counts = lengths - hidden_counts
        count = np.clip(
            np.rint(hidden_counts / self.mean_span), 1, np.minimum(hidden_counts, visible_counts)
        )
        some = lengths >= 2
        return (hidden_counts * some).astype(np.int64), (count * some).astype(np.int64)

    def prepare(self, table: TokenTable, tokenizer: Tokenizer, window: int) -> Examples:
        """Windows of documents with what is hidden of them, none longer than `window`.

        Raises:
            ValueError: a sentinel is unfit, a text holds it (names the row), or `window` is too
              short.
        """
        limit, ids = self._longest_text(tokenizer, window)
        names = [self.sentinel.replace(_SLOT, str(number)) for number in range(len(ids))]
        markers.check_absent(names, ids, table, "text", tokenizer)
        windows = Windows.cut(table["text"], limit)
        # Tokens of the first k sentinels.
        sentinel_sizes = np.cumsum([0, *map(len, ids)])
        hidden_counts, spans = self.spans(windows.text_lengths)
        lengths = np.where(spans, 1 + windows.text_lengths + 2 * sentinel_sizes[spans], 0)

        def piece(index: int, start: int, stop: int) -> Piece:
            text, count, hidden_count = (
                windows.text(index),
                int(spans[index]),
                int(hidden_counts[index]),
            )
            chance = uniform(self.seed, index, np.arange(len(text)))
            sizes = np.zeros(2 * count, np.int64)  # Kept and hidden in turn.
            sizes[0::2] = _divide(len(text) - hidden_count, count, chance[hidden_count:])
            sizes[1::2] = _divide(hidden_count, count, chance[:hidden_count])
            edges = [0, *np.cumsum(sizes).tolist()]
            begin, end = np.asarray([[tokenizer.begin_id], [tokenizer.end_id]], np.int32)
            prefix, answer = [begin], []
            for number, sentinel in enumerate(ids[:count]):
                first, middle, last = edges[2 * number : 2 * number + 3]
                prefix += [text[first:middle], sentinel]
                answer += [sentinel, text[middle:last]]
            before = sum(map(len, prefix))
            whole = np.concatenate([*prefix, *answer, end])
            places = np.arange(len(whole) - 1)
            # The last token that is read says the first one that is asked for.
            weights = (places >= before - 1).astype(np.float32)
            return Piece(whole[:-1], whole[1:], weights, places < before).between(start, stop)

        return Examples(
            name=table.name,
            lengths=lengths,
            trained=np.where(spans, sentinel_sizes[spans] + hidden_counts + 1, 0),
            bytes=None,
            truncated=np.zeros(len(windows), bool),
            splittable=False,
            piece=piece,
            rows=windows.rows,
        )

    def _longest_text(self, tokenizer: Tokenizer, window: int) -> tuple[int, list[np.ndarray]]:
        """The tokens of text that fit into a window, and the sentinels that they need."""
        texts = np.arange(window + 1)
        spans = self.spans(texts)[1]
        names = [self.sentinel.replace(_SLOT, str(i)) for i in range(int(spans.max()))]
        ids = markers.encode(names, tokenizer)
        special = [markers.is_special(token_ids, tokenizer) for token_ids in ids]
        sizes = [1 if any(special[:1]) else len(token_ids) for token_ids in ids]
        # A longer text never has fewer spans, so its example is longer.
        fits = 1 + texts + 2 * np.cumsum([0, *sizes])[spans] <= window
        limit = int(texts[fits].max(initial=0))
        if limit < 2:
            raise ValueError(
                f"A window of {window} tokens has no room for two tokens of text beside the begin "
                "token and two sentinels: use a longer sequence_length, or sentinels that are "
                "special tokens."
            )
        span_count = int(spans[limit])
        if special[0] and not all(special[:span_count]):
            count = special.index(False)
            raise ValueError(
                f"The tokenizer has only {count} sentinels {names[0]!r} .. {names[count - 1]!r}, "
                f"and a window of {window} tokens needs {span_count}: use a shorter "
                "sequence_length, a lower rate or a longer mean_span."
            )
        return limit, ids[:span_count]


def _divide(total: int, parts: int, chance: np.ndarray) -> np.ndarray:
    """Positive sizes that add up to `total`; `chance` [total] decides."""
    cuts = np.sort(np.argsort(chance[: total - 1])[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
