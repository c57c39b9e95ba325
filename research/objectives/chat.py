"""Answer in a conversation: every turn of the assistant and its end are trained on, only these."""

import bisect
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from research.config.schema import Share
from research.objectives.base import Examples, Objective, Piece, name_rows
from research.objectives.own_template import check_own_template
from research.text import chat_template
from research.text.conversation import PLAIN, Message, Part, Writer, read_messages
from research.text.token_table import Encoded, TokenTable
from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Chat(Objective):
    """Conversations of any number of turns, written with a chat template.

    An example is `messages`, or `prompt` and `completion` as a conversation of two turns.
    """

    # A Jinja program that writes a conversation; None: the tokenizer's own, or `PLAIN`.
    template: str | None = None
    # A conversation longer than a row loses whole turns from its beginning (never the system's
    # message, never a part of an answer), or is refused.
    too_long: Literal["cut", "refuse"] = "cut"
    # Share of a source's conversations that may be refused so. They are left out; more of them
    # are an error.
    over_long: Share = 0.0

    kind: Literal["chat"] = "chat"

    fields: ClassVar[Mapping[str, bool]] = {}
    has_completions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.too_long not in ("cut", "refuse"):
            raise ValueError(f"too_long must be 'cut' or 'refuse', not {self.too_long!r}.")
        if self.template is not None:
            chat_template.check(self.template)

    def writer(self, tokenizer: Tokenizer) -> "Writer":
        """Writes conversations for the model of `tokenizer`."""
        return Writer(self.template or tokenizer.chat_template or PLAIN, tokenizer)

    def encoder(self, tokenizer: Tokenizer, window: int) -> "Conversations":
        """Turns examples into tokens, and says which of them are trained on."""
        return Conversations(self.writer(tokenizer), tokenizer, window, self.too_long)

    @property
    def texts_key(self) -> Any:
        """Any example has messages."""
        return "messages"

    def texts(self, example: Mapping[str, Any], where: str) -> list[str]:
        """The text of every message."""
        return [message["content"] for message in read_messages(example, where)]

    def prompt_ids(
        self, tokenizer: Tokenizer, messages: Sequence[Message], window: int
    ) -> tuple[list[int], bool]:
        """The whole conversation in the template, up to where the next answer begins."""
        return self.writer(tokenizer).prompt_ids(messages), False

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The token that ends what the assistant says."""
        example = {"prompt": "?", "completion": "!"}
        end = self.writer(tokenizer).write(read_messages(example, "an example"))[-1].end
        return (tokenizer.encode(end, special=True)[0],)

    def check_template(self, tokenizer: Tokenizer) -> None:
        """Raises ValueError if a conversation is written unlike the tokenizer's own template."""
        check_own_template(self.writer(tokenizer).prompt_ids, tokenizer, "chat template")

    def prepare(self, table: TokenTable, tokenizer: Tokenizer, window: int) -> Examples:
        """Conversations of `table`, which `encoder` wrote.

        Raises:
            ValueError: more conversations than `over_long` do not fit a row (names the rows).
        """
        tokens, trained_marks, sizes = table["tokens"], table["said"], table["over"].values
        long = np.flatnonzero(sizes)
        if len(long) > self.over_long * len(table):
            alone = "; its last exchange alone does not fit" if self.too_long == "cut" else ""
            raise ValueError(
                f"{table.name}, row {long[0]}: the conversation has {sizes[long[0]]} tokens, and a "
                f"row {window}{alone}. So are {len(long)} of {len(table)} conversations "
                f"({name_rows(long)}), and over_long allows {self.over_long:.2%}. Answers are "
                "never cut: use a longer sequence_length, remove these rows, or leave them out "
                "with data.objective.over_long."
            )
        # What is left out has no tokens.
        nonempty = tokens.lengths > 0
        trained = np.zeros(len(tokens), np.int64)
        if nonempty.any():
            starts = trained_marks.offsets[:-1][nonempty]
            trained[nonempty] = np.add.reduceat(trained_marks.values, starts, dtype=np.int64)
        last = tokens.values[tokens.offsets[1:][nonempty] - 1]

        def piece(index: int, start: int, stop: int) -> Piece:
            ids = tokens[index].astype(np.int32)
            weights = trained_marks[index][1:].astype(np.float32)
            return Piece(ids[:-1][start:stop], ids[1:][start:stop], weights[start:stop])

        template = self.writer(tokenizer).template
        origin = "tokenizer's" if template == tokenizer.chat_template else "configured"
        note = f"the {'plain' if template == PLAIN else origin} chat template"
        return Examples(
            name=table.name,
            lengths=np.maximum(tokens.lengths - 1, 0),
            trained=trained,
            bytes=table.bytes["said"],
            truncated=table["cut"].values > 0,
            splittable=False,
            piece=piece,
            stops=tuple(np.unique(last).tolist()),
            note=f"{note}, {len(long):,} over-long left out" if len(long) else note,
            sidecar_files={chat_template.TEMPLATE: template},
        )


class Conversations:
    """The objective's `Encoder`; a row holds `window` tokens.

    Its fields: `tokens`; `said`, 1 for the tokens that are trained on; `cut`, how many messages of
    the conversation were left out; `over`, the tokens of a conversation that does not fit a row,
    which then has none of the others.
    """

    def __init__(self, writer: Writer, tokenizer: Tokenizer, window: int, too_long: str):
        self._writer = writer
        self._window = window
        self._too_long = too_long
        self._waiting: list[tuple[list[Message], list[Part]]] = []
        self.types = {
            "tokens": tokenizer.token_type,
            "said": np.dtype(np.uint8),
            "cut": np.dtype(np.uint32),
            "over": np.dtype(np.uint32),
        }
        self.key = {
            "tokenizer": tokenizer.fingerprint(),
            "chat": {"template": writer.template, "window": window, "too_long": too_long},
            "fields": sorted(self.types),
        }

    def add(self, example: Mapping[str, Any], where: str) -> int:
        """Takes one conversation."""
        messages = read_messages(example, where)
        try:
            parts = self._writer.write(messages)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if not parts or not parts[0].text:
            raise ValueError(
                f"{where}: there is no answer, or the chat template writes nothing before it."
            )
        self._waiting.append((messages, parts))
        return sum(len(part.text) for part in parts)

    def take(self) -> dict[str, Encoded]:
        """The tokens of what was added."""
        waiting, self._waiting = self._waiting, []
        encoded = self._writer.encode([parts for _, parts in waiting])
        tokens, marks_of_all, cut, over, sizes = [], [], [], [], []
        for (messages, parts), ids in zip(waiting, encoded, strict=True):
            missing, size = 0, sum(map(len, ids))
            fits = self._fits(ids)
            if not fits and (shorter := self._shorten(messages)):
                fits, (missing, parts, ids) = True, shorter
            if not fits:
                parts, ids = [], []
            over.append([0 if fits else size])
            tokens.append([token for part in ids for token in part])
            marks = [[int(part.is_answer)] * len(i) for part, i in zip(parts, ids, strict=True)]
            marks_of_all.append([mark for part in marks for mark in part])
            cut.append([missing])
            texts = [part.text.removesuffix(part.end) for part in parts if part.is_answer]
            sizes.append(sum(len(self._writer.escape(text).encode()) for text in texts))
        none = [0] * len(waiting)
        return {
            "tokens": Encoded(tokens, none),
            "said": Encoded(marks_of_all, sizes),
            "cut": Encoded(cut, none),
            "over": Encoded(over, none),
        }

    def _fits(self, ids: Sequence[Sequence[int]]) -> bool:
        """Whether the tokens fit into a row, where the last is a target and never read."""
        return sum(map(len, ids)) - 1 <= self._window

    def _shorten(
        self, messages: Sequence[Message]
    ) -> tuple[int, list[Part], list[list[int]]] | None:
        """The longest end of a conversation that fits: number of lost messages, parts, tokens.

        None where even the last exchange does not fit, or nothing may be lost.
        """
        if self._too_long == "refuse":
            return None
        system = [*itertools.takewhile(lambda m: m["role"] in ("system", "developer"), messages)]
        turns = messages[len(system) :]
        starts = [
            i
            for i, message in enumerate(turns)
            if i and message["role"] == "user" and turns[i - 1]["role"] != "user"
            if any(later["role"] == "assistant" for later in turns[i:])
        ]

        def encode_from(start: int) -> tuple[list[Part], list[list[int]]]:
            parts = self._writer.write([*system, *turns[start:]])
            return parts, self._writer.encode([parts])[0]

        first = bisect.bisect_left(
            starts, True, key=lambda start: self._fits(encode_from(start)[1])
        )
        return (starts[first], *encode_from(starts[first])) if first < len(starts) else None
