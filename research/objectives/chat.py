"""Answer in a conversation: what the assistant says and its end are trained on, only these."""

import bisect
import contextlib
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from research.config.schema import Share
from research.objectives.base import Examples, Objective, Piece, name_rows
from research.objectives.own_template import check_own_template
from research.text import chat_template
from research.text.conversation import (
    Conversation,
    from_messages,
    message_texts,
    nested_texts,
    read_conversation,
)
from research.text.conversation_writer import ConversationExample, Writer
from research.text.plain_template import plain_template
from research.text.token_table import Encoded, TokenTable
from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Chat(Objective):
    """Conversations of any number of turns, written with a chat template.

    An example is `messages`, or `prompt` and `completion` as a conversation of two turns. Where
    the template writes earlier turns in another way than the last, a conversation gives several
    examples, so that each answer is trained on as the model is asked for it.
    """

    # A Jinja program that writes a conversation; None: the tokenizer's own, or `PLAIN`.
    template: str | None = None
    # A conversation longer than a row loses whole turns from its beginning (never the system's
    # message, never a part of an answer), or is refused.
    too_long: Literal["cut", "refuse"] = "cut"
    # Share of a source's conversations that may be refused so. They are left out; more of them
    # are an error.
    over_long: Share = 0.0
    # Which of the assistant's turns are trained on: all that have weight, or the last of them.
    turns: Literal["all", "last"] = "all"
    # Whether what the assistant thinks is trained on, or only read.
    reasoning: Literal["train", "mask"] = "train"
    # Variables of the template, such as {"enable_thinking": False}; a record's own come before
    # them, and a run generates with them.
    template_arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Fields of messages and records that mean nothing: without them here, what the template leaves
    # out of what a record says is refused.
    ignored_fields: tuple[str, ...] = ()

    kind: Literal["chat"] = "chat"

    fields: ClassVar[Mapping[str, bool]] = {}
    has_completions: ClassVar[bool] = True
    reads_conversations: ClassVar[bool] = True

    def __post_init__(self) -> None:
        choices = {"too_long": ("cut", "refuse"), "turns": ("all", "last")}
        for name, values in (choices | {"reasoning": ("train", "mask")}).items():
            if getattr(self, name) not in values:
                known = " or ".join(map(repr, values))
                raise ValueError(f"{name} must be {known}, not {getattr(self, name)!r}.")
        if self.template is not None:
            chat_template.check(self.template)

    def writer(self, tokenizer: Tokenizer) -> Writer:
        """Writes conversations for the model of `tokenizer`."""
        template = self.template or tokenizer.chat_template or plain_template(tokenizer)
        return Writer(
            template, tokenizer, self.template_arguments, self.reasoning, self.ignored_fields
        )

    def conversation_writer(self, tokenizer: Tokenizer) -> Writer:
        return self.writer(tokenizer)

    def encoder(self, tokenizer: Tokenizer, window: int) -> "Conversations":
        """Turns examples into tokens, and says which of them are trained on."""
        return Conversations(self, tokenizer, window)

    @property
    def texts_key(self) -> Any:
        """Any example has a conversation."""
        return "conversation"

    def texts(self, example: Mapping[str, Any], where: str) -> list[str]:
        """The text of every message, and of tools and template arguments."""
        conversation = read_conversation(example, where)
        texts = [text for message in conversation.messages for text in message_texts(message)]
        texts += nested_texts(conversation.tools)
        return texts + nested_texts(conversation.template_arguments)

    def prompt_ids(
        self, tokenizer: Tokenizer, conversation: Conversation, window: int
    ) -> tuple[list[int], bool]:
        """The whole conversation in the template, up to where the next answer begins."""
        return self.writer(tokenizer).prompt_ids(conversation), False

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The tokens that end what the assistant says, and a call of a tool if it can call one."""
        writer = self.writer(tokenizer)
        question = {"role": "user", "content": "?"}
        answer = {"role": "assistant", "content": "!"}
        ends = [writer.write(from_messages([question, answer]))[-1].parts[-1].end]
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
        function = {"name": "f", "description": "f", "parameters": {}}
        tool = {"type": "function", "function": function}
        calling = from_messages([question, answer | {"content": "", "tool_calls": [call]}], [tool])
        with contextlib.suppress(ValueError):  # a template without tools
            ends.append(writer.write(calling)[-1].parts[-1].end)
        ids = [tokenizer.encode(end, special=True)[0] for end in ends]
        return tuple(dict.fromkeys(ids))

    def template_names(self, tokenizer: Tokenizer) -> frozenset[str]:
        """Variables that the templates read."""
        writer = self.writer(tokenizer)
        templates = (writer.template, writer.tool_template)
        return frozenset().union(*(chat_template.read_contents(each).names for each in templates))

    def check_template(self, tokenizer: Tokenizer) -> None:
        """Raises ValueError if a conversation is written unlike the tokenizer's own template."""
        prompt_ids = self.writer(tokenizer).prompt_ids
        check_own_template(prompt_ids, tokenizer, "chat template", self.template_arguments)

    def prepare(self, table: TokenTable, tokenizer: Tokenizer, window: int) -> Examples:
        """Conversations of `table`, which `encoder` wrote.

        Raises:
            ValueError: more conversations than `over_long` do not fit a row (names the rows).
        """
        tokens, lengths, over = table["tokens"], table["lengths"], table["over"]
        rows = np.repeat(np.arange(len(table)), lengths.lengths)
        long = np.unique(rows[over.values > 0])
        if len(long) > self.over_long * len(table):
            alone = "; its last exchange alone does not fit" if self.too_long == "cut" else ""
            raise ValueError(
                f"{table.name}, row {long[0]}: the conversation has {over[long[0]].max()} tokens, "
                f"and a row {window}{alone}. So are {len(long)} of {len(table)} conversations "
                f"({name_rows(long)}), and over_long allows {self.over_long:.2%}. Answers are "
                "never cut: use a longer sequence_length, remove these rows, or leave them out "
                "with data.objective.over_long."
            )
        offsets = np.concatenate([[0], np.cumsum(lengths.values, dtype=np.int64)])
        # Intervals [start, stop) of all tokens, and those of example i: bounds[i] .. bounds[i + 1].
        intervals, interval_weights = table["intervals"].values.reshape(-1, 2), table["weights"]
        firsts = tokens.offsets[:-1].repeat(interval_weights.lengths)[:, None]
        intervals = intervals.astype(np.int64) + firsts
        bounds = np.searchsorted(intervals[:, 0], offsets)
        sums = np.concatenate([[0], np.cumsum(intervals[:, 1] - intervals[:, 0])])
        ends = offsets[1:][lengths.values > 0]

        def piece(index: int, start: int, stop: int) -> Piece:
            ids = tokens.values[offsets[index] : offsets[index + 1]].astype(np.int32)
            weights = np.zeros(len(ids), np.float32)
            here = slice(bounds[index], bounds[index + 1])
            for (first, last), weight in zip(
                intervals[here] - offsets[index], interval_weights.values[here], strict=True
            ):
                weights[first:last] = weight
            return Piece(ids[:-1][start:stop], ids[1:][start:stop], weights[1:][start:stop])

        several = len(rows) > len(table)
        return Examples(
            name=table.name,
            lengths=np.maximum(lengths.values.astype(np.int64) - 1, 0),
            trained=np.diff(sums[bounds]),
            # Nats that are weighted are no code for a text.
            bytes=table["bytes"].values.astype(np.int64)
            if np.isin(interval_weights.values, (0, 1)).all()
            else None,
            truncated=table["cut"].values > 0,
            splittable=False,
            piece=piece,
            rows=rows if several else None,
            complete=True,
            stops=tuple(np.unique(tokens.values[ends - 1]).tolist()),
            note=self._note(tokenizer, len(rows) if several else 0, len(table), len(long)),
            sidecar_files=self._template_files(tokenizer),
        )

    def _template_files(self, tokenizer: Tokenizer) -> dict[str, str]:
        """The templates that are trained with: the one for tools too, where the tokenizer's makers
        have one, so that theirs does not stay beside another."""
        writer = self.writer(tokenizer)
        files = {chat_template.TEMPLATE: writer.template}
        if tokenizer.tool_template is not None:
            files[chat_template.TOOLS] = writer.tool_template
        return files

    def _note(self, tokenizer: Tokenizer, examples: int, conversations: int, long: int) -> str:
        """What a plan says; `examples` is 0 where each conversation is one."""
        template = self.writer(tokenizer).template
        origin = "tokenizer's" if template == tokenizer.chat_template else "configured"
        origin = "plain" if template == plain_template(tokenizer) else origin
        notes = [f"the {origin} chat template"]
        if self.template_arguments:
            notes[0] += f" with {json.dumps(dict(self.template_arguments))}"
        if self.turns == "last":
            notes.append("the last turn alone")
        if examples:
            notes.append(
                f"every turn, {examples:,} examples of {conversations:,} conversations (the "
                "template writes earlier turns in another way)"
            )
        if self.reasoning == "mask":
            notes.append("thoughts masked")
        if self.ignored_fields:
            notes.append(f"without {', '.join(self.ignored_fields)}")
        return ", ".join([*notes, *([f"{long:,} over-long left out"] if long else [])])


class _EncodedExample(NamedTuple):
    """An example of a conversation, and the tokens of its parts."""

    example: ConversationExample
    ids: list[list[int]]
    # Messages of the conversation's beginning that were left out.
    cut: int = 0

    @property
    def size(self) -> int:
        return sum(map(len, self.ids))


class Conversations:
    """The objective's `Encoder`; a row holds `window` tokens.

    Its fields, for each record: `tokens` of its examples, one after the other, and `lengths` of
    these; `intervals` of the tokens that are trained on, and their `weights`; for each example the
    UTF-8 `bytes` of what is trained, `cut`, how many messages were left out, and `over`, the tokens
    of an example that does not fit a row, which then has no others.
    """

    def __init__(self, objective: Chat, tokenizer: Tokenizer, window: int):
        self._writer = objective.writer(tokenizer)
        self._objective = objective
        self._window = window
        self._waiting: list[tuple[Conversation, list[ConversationExample]]] = []
        numbers = dict.fromkeys(
            ("lengths", "intervals", "bytes", "cut", "over"), np.dtype(np.uint32)
        )
        self.types = {"tokens": tokenizer.token_type, "weights": np.dtype(np.float32), **numbers}
        settings = objective.settings
        settings.pop("over_long", None)
        self.key = {
            "tokenizer": tokenizer.fingerprint(),
            "chat": settings
            | {"template": self._writer.template, "window": window, "rules": 3}
            | {"names": tokenizer.template_tokens, "tools": self._writer.tool_template},
            "fields": sorted(self.types),
        }

    def add(self, example: Mapping[str, Any], where: str) -> int:
        """Takes one conversation."""
        conversation = read_conversation(example, where)
        answers = [i for i in conversation.answers if conversation.weights[i] > 0]
        if not answers:
            what = "every answer has weight 0" if conversation.answers else "there is no answer"
            raise ValueError(f"{where}: {what}, so that nothing is trained on. Remove the row.")
        if self._objective.turns == "last":
            conversation = conversation.train_only(answers[-1:])
        try:
            examples = self._writer.write(conversation)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if not all(each.parts[0].text for each in examples):
            raise ValueError(f"{where}: the chat template writes nothing before an answer.")
        self._waiting.append((conversation, examples))
        return sum(len(part.text) for each in examples for part in each.parts)

    def take(self) -> dict[str, Encoded]:
        """The tokens of what was added."""
        waiting, self._waiting = self._waiting, []
        all_ids = iter(self._writer.encode([e.parts for _, each in waiting for e in each]))
        values: dict[str, list[list[Any]]] = {field: [] for field in self.types}
        for conversation, examples in waiting:
            row: dict[str, list[Any]] = {field: [] for field in self.types}
            for example in examples:
                encoded = _EncodedExample(example, next(all_ids))
                fitting = [encoded] if self._fits(encoded) else self._shorten(conversation, example)
                for each in fitting:
                    self._append(row, each)
                if not fitting:
                    for field, value in (("lengths", 0), ("bytes", 0), ("cut", 0)):
                        row[field].append(value)
                    row["over"].append(encoded.size)
            for field, numbers in row.items():
                values[field].append(numbers)
        none = [0] * len(waiting)
        return {field: Encoded(numbers, none) for field, numbers in values.items()}

    def _append(self, row: dict[str, list[Any]], encoded: _EncodedExample) -> None:
        """Adds an example to the fields of its record."""
        size = 0
        for part, ids in zip(encoded.example.parts, encoded.ids, strict=True):
            first = len(row["tokens"])
            row["tokens"] += ids
            if part.weight and ids:
                row["intervals"] += [first, first + len(ids)]
                row["weights"].append(part.weight)
                size += len(self._writer.unmark(part.text.removesuffix(part.end)).encode())
        row["lengths"].append(encoded.size)
        row["bytes"].append(size)
        row["cut"].append(encoded.cut)
        row["over"].append(0)

    def _fits(self, encoded: _EncodedExample) -> bool:
        """Whether the tokens fit into a row, where the last is a target and never read."""
        return encoded.size - 1 <= self._window

    def _shorten(
        self, conversation: Conversation, example: ConversationExample
    ) -> list[_EncodedExample]:
        """The longest end of an example that fits, which may have become several.

        None where even the last exchange does not fit, or nothing may be lost.
        """
        if self._objective.too_long == "refuse":
            return []
        conversation = conversation.train_only(example.answers)
        messages, introduction = conversation.messages, conversation.introduction
        last = example.answers[-1]
        starts = [
            i
            for i in range(introduction + 1, last)
            if messages[i]["role"] == "user" and messages[i - 1]["role"] != "user"
        ]

        def encode_from(start: int) -> list[_EncodedExample]:
            examples = self._writer.write(conversation.between(start, last + 1))
            all_ids = self._writer.encode([each.parts for each in examples])
            cut = start - introduction
            return [
                _EncodedExample(each, ids, cut) for each, ids in zip(examples, all_ids, strict=True)
            ]

        first = bisect.bisect_left(
            starts, True, key=lambda start: all(map(self._fits, encode_from(start)))
        )
        return encode_from(starts[first]) if first < len(starts) else []
