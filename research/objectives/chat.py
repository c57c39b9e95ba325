"""Answer in a conversation. Every turn of the assistant and its end are trained on, nothing else.

What the assistant says is found by writing the beginnings of a conversation with the template: from
where the model is asked for an answer to where the answer has ended. That holds for any template
that writes a conversation as the beginning of its continuation; others are refused.
"""

import bisect
import dataclasses
import datetime
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from research.config.schema import Share
from research.objectives.base import Examples, Piece, name_rows
from research.text import chat_template
from research.text.token_table import Encoded, TokenTable
from research.text.tokenizer import Tokenizer

# Where the tokenizer's makers give no template. It writes the tokenizer's own begin and end.
PLAIN = (
    "{%- for message in messages -%}"
    "{{- bos_token + message.role + '\n' + message.content + eos_token + '\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- bos_token + 'assistant\n' -}}{%- endif -%}"
)
# A template may write the date; the same conversation must give the same tokens on any day.
_TODAY = datetime.date(2024, 7, 26)
# Stands around a number in place of a special token's name in a message; no character of any text.
_MARK = "\ufdd0"
_MARKED = re.compile(f"{_MARK}([0-9]+){_MARK}")

Message = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Part:
    """A stretch of a written conversation that is tokenized apart."""

    text: str
    # Whether the assistant says it; then it ends with `end`, the name of a token.
    said: bool = False
    end: str = ""


@dataclasses.dataclass(frozen=True)
class Chat:
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

    fields: ClassVar[Mapping[str, bool]] = {}

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

    def prompt_ids(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        """What the model reads before it answers: exactly what it reads in training."""
        writer = self.writer(tokenizer)
        (ids,) = writer.encode([writer.prompt(messages)])
        return [token for part in ids for token in part]

    def end_id(self, tokenizer: Tokenizer) -> int:
        """The token that ends what the assistant says."""
        asked = {"prompt": "?", "completion": "!"}
        end = self.writer(tokenizer).write(read_messages(asked, "an example"))[-1].end
        return tokenizer.encode(end, special=True)[0]

    def prepare(self, table: TokenTable, tokenizer: Tokenizer, window: int) -> Examples:
        """Conversations of `table`, which `encoder` wrote.

        Raises:
            ValueError: more conversations than `over_long` do not fit a row (names the rows).
        """
        tokens, said, sizes = table["tokens"], table["said"], table["over"].values
        long = np.flatnonzero(sizes)
        if len(long) > self.over_long * len(table):
            alone = "; its last exchange alone does not fit" if self.too_long == "cut" else ""
            raise ValueError(
                f"{table.name}, row {long[0]}: the conversation has {sizes[long[0]]} tokens, and a "
                f"row {window}{alone}. So are {len(long)} of {len(table)} conversations "
                f"({name_rows(long)}), and over_long allows {self.over_long:.2%}. Answers are "
                "never cut: use a longer sequence_length, remove these rows, or leave them out "
                "with objective_settings.over_long."
            )
        # What is left out has no tokens.
        filled = tokens.lengths > 0
        trained = np.zeros(len(tokens), np.int64)
        if filled.any():
            starts = said.offsets[:-1][filled]
            trained[filled] = np.add.reduceat(said.values, starts, dtype=np.int64)
        last = tokens.values[tokens.offsets[1:][filled] - 1]

        def piece(index: int, start: int, stop: int) -> Piece:
            ids = tokens[index].astype(np.int32)
            weights = said[index][1:].astype(np.float32)
            return Piece(ids[:-1][start:stop], ids[1:][start:stop], weights[start:stop])

        template = self.writer(tokenizer).template
        given = "tokenizer's" if template == tokenizer.chat_template else "configured"
        note = f"the {'plain' if template == PLAIN else given} chat template"
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


class Writer:
    """Writes conversations as text, and text as tokens.

    A special token that a message spells out is written by the tokens of its characters: no
    message can end its own turn, or begin another's.
    """

    def __init__(self, template: str, tokenizer: Tokenizer):
        self.template = template
        self._tokenizer = tokenizer
        self._unwritten = [_MARK, *sorted(tokenizer.special, key=len, reverse=True)]
        self._numbers = {name: number for number, name in enumerate(self._unwritten)}
        self._names = re.compile("|".join(map(re.escape, self._unwritten)))

    def _marked(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        def mark(found: re.Match[str]) -> str:
            return f"{_MARK}{self._numbers[found.group()]}{_MARK}"

        return [{**m, "content": self._names.sub(mark, m["content"])} for m in messages]

    def spelt(self, text: str) -> str:
        """Text as the messages had it."""
        return _MARKED.sub(lambda found: self._unwritten[int(found.group(1))], text)

    def _render(self, messages: Sequence[Message], ask: bool) -> str:
        roles = self._tokenizer.roles
        return chat_template.render(
            self.template,
            messages,
            begin=roles["begin"],
            end=roles["end"],
            ask=ask,
            today=_TODAY,
        )

    def write(self, messages: Sequence[Message]) -> list[Part]:
        """The conversation up to its last answer; every second part is said by the assistant.

        Raises:
            ValueError: the template does not take it, or what is said cannot be told from it.
        """
        messages = self._marked(messages)
        return self._parts(messages, self._render(messages, ask=False))

    def prompt(self, messages: Sequence[Message]) -> list[Part]:
        """The conversation up to where its next answer begins."""
        messages = self._marked(messages)
        whole = self._render(messages, ask=True)
        parts = self._parts(messages, whole)
        return [*parts, Part(whole[sum(len(part.text) for part in parts) :])]

    def _parts(self, messages: Sequence[Message], whole: str) -> list[Part]:
        parts: list[Part] = []
        at = 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:number], ask=True)
            after = self._render(messages[: number + 1], ask=False)
            if not (
                len(before) >= at and after.startswith(before) and whole.startswith(after.rstrip())
            ):
                raise ValueError(
                    f"The chat template writes the beginning of a conversation (up to message "
                    f"{number}) in another way than the whole, so that what the assistant says "
                    "cannot be told: give the objective another `template`."
                )
            said = after[len(before) :].rstrip()  # The model has stopped where white space follows.
            content = message["content"].strip()
            first = said.find(content)
            head, tail = said[: max(first, 0)], said[first + len(content) :]
            if first < 0:
                raise ValueError(
                    f"The chat template changes what the assistant says (message {number}), which "
                    "must be trained on as it is: give the objective another `template`."
                )
            if self._names.search(head):
                raise ValueError(
                    f"The chat template writes {head!r} before what the assistant says, and not "
                    "where the model is asked: see add_generation_prompt in the `template`."
                )
            ends = [name for name in self._tokenizer.named if tail.endswith(name)]
            if not ends:
                raise ValueError(
                    f"The chat template ends what the assistant says with {tail!r}, which is no "
                    "special token: the model would never stop. Write eos_token in the `template`."
                )
            end = max(ends, key=len)
            parts += [Part(whole[at : len(before)]), Part(said, said=True, end=end)]
            at = len(before) + len(said)
        return parts

    def encode(self, conversations: Sequence[Sequence[Part]]) -> list[list[list[int]]]:
        """The tokens of every part of every conversation."""
        pieces: list[str] = []
        plain: list[str] = []
        for part in itertools.chain.from_iterable(conversations):
            # Text between the marks, and at odd places the numbers of unwritten names.
            split = _MARKED.split(part.text)
            pieces += split[::2]
            plain += [self._unwritten[int(number)] for number in split[1::2]]
        written = iter(self._tokenizer.encode_batch(pieces, special=True))
        names = iter(self._tokenizer.encode_batch(plain))

        def tokens(part: Part) -> list[int]:
            ids = list(next(written))
            for _ in _MARKED.findall(part.text):
                ids += [*next(names), *next(written)]
            return ids

        return [[tokens(part) for part in parts] for parts in conversations]


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
        tokens, said, cut, over, sizes = [], [], [], [], []
        for (messages, parts), ids in zip(waiting, encoded, strict=True):
            missing, size = 0, sum(map(len, ids))
            fits = self._fits(ids)
            if not fits and (shorter := self._shorten(messages)):
                fits, (missing, parts, ids) = True, shorter
            if not fits:
                parts, ids = [], []
            over.append([0 if fits else size])
            tokens.append([token for part in ids for token in part])
            marks = [[int(part.said)] * len(i) for part, i in zip(parts, ids, strict=True)]
            said.append([mark for part in marks for mark in part])
            cut.append([missing])
            texts = [part.text.removesuffix(part.end) for part in parts if part.said]
            sizes.append(sum(len(self._writer.spelt(text).encode()) for text in texts))
        none = [0] * len(waiting)
        return {
            "tokens": Encoded(tokens, none),
            "said": Encoded(said, sizes),
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

        def written(start: int) -> tuple[list[Part], list[list[int]]]:
            parts = self._writer.write([*system, *turns[start:]])
            return parts, self._writer.encode([parts])[0]

        first = bisect.bisect_left(starts, True, key=lambda start: self._fits(written(start)[1]))
        return (starts[first], *written(starts[first])) if first < len(starts) else None


def read_messages(example: Mapping[str, Any], where: str) -> list[Message]:
    """The conversation of an example.

    Raises:
        ValueError: it has none.
    """
    if "messages" in example:
        return example["messages"]
    if "prompt" not in example or "completion" not in example:
        raise ValueError(
            f"{where}: there are no 'messages', and no 'prompt' with 'completion', only "
            f"{sorted(example)}. Name the right ones in the source's `fields`."
        )
    return [
        {"role": "user", "content": example["prompt"]},
        {"role": "assistant", "content": example["completion"]},
    ]
