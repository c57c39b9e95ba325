"""Prefer one answer to another: pairs of a chosen and a rejected answer to one prompt."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, cast

import numpy as np

from research.batch import BAD, GOOD
from research.config.schema import Share, one_of
from research.objectives.base import Examples, Objective, Piece, joined, name_rows
from research.objectives.chat import Chat
from research.objectives.supervised import Supervised
from research.text.conversation import Conversation
from research.text.conversation_writer import Writer
from research.text.token_table import Encoded, Encoder, TokenTable
from research.text.tokenizer import Tokenizer

SIDES = ("chosen", "rejected")
# What writes a prompt and an answer.
AnswerObjective: Any = one_of((Supervised, Chat))


@dataclasses.dataclass(frozen=True)
class AnswersObjective(Objective):
    """What objectives of preferences share: another one, `of`, writes each answer and its prompt.

    Each answer is a document of its own, with its own copy of the prompt, in half a row at most.
    A row may so hold several examples, and every kernel of attention is exact for it. (A prompt
    that is read once, as in evaluation, would be one pair a row, and needs a mask that fast
    kernels do not have.)
    """

    # How prompts and answers are written, such as dict(kind="chat") or dict(kind="supervised",
    # template="{prompt}\\n").
    of: AnswerObjective = dataclasses.field(default_factory=Supervised)
    # Share of a source's examples that may be too long for a row. They are left out; more of them
    # are refused.
    over_long: Share = 0.0

    fields: ClassVar[Mapping[str, bool]] = {"prompt": False, "chosen": True, "rejected": True}

    @property
    def writer(self) -> Objective:
        """What writes answers; none that is too long, which is said here."""
        return cast(Objective, dataclasses.replace(self.of, over_long=1.0))

    @property
    def reads_conversations(self) -> bool:  # type: ignore[override]
        return self.of.reads_conversations

    @property
    def bidirectional(self) -> bool:
        return self.of.bidirectional

    @property
    def texts_key(self) -> Any:
        return [self.kind, self.of.texts_key]

    def texts(self, example: Mapping[str, Any], where: str) -> list[str]:
        """Prompt and answer of each side that there is."""
        sides = [side for side in SIDES if side in example]
        records = [read_answer(example, side, self.of, where) for side in sides]
        return [text for record in records for text in self.of.texts(record, where)]

    def conversation_writer(self, tokenizer: Tokenizer) -> Writer | None:
        return self.of.conversation_writer(tokenizer)

    def prompt_ids(
        self, tokenizer: Tokenizer, conversation: Conversation, window: int
    ) -> tuple[list[int], bool]:
        return self.of.prompt_ids(tokenizer, conversation, window)

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return self.of.stop_ids(tokenizer)

    def template_names(self, tokenizer: Tokenizer) -> frozenset[str]:
        return self.of.template_names(tokenizer)

    def check_template(self, tokenizer: Tokenizer) -> None:
        self.of.check_template(tokenizer)

    def check_long(self, name: str, is_long: np.ndarray, window: int) -> str:
        """A note of the examples [N] that do not fit.

        Raises:
          ValueError: they are more than `over_long`; names the rows.
        """
        long = np.flatnonzero(is_long)
        if len(long) > self.over_long * len(is_long):
            raise ValueError(
                f"{name}, row {long[0]}: an answer with its prompt has more than {window // 2} "
                "tokens, half a row, or its prompt would be cut unlike that of the other one. So "
                f"are {len(long)} of {len(is_long)} examples ({name_rows(long)}), and over_long "
                f"allows {self.over_long:.2%}. Answers are never cut: use a longer "
                "sequence_length, remove these rows, or leave them out with "
                "data.objective.over_long."
            )
        return f"{len(long):,} over-long left out" if len(long) else ""


@dataclasses.dataclass(frozen=True)
class Preference(AnswersObjective):
    """Pairs of answers. An example is `chosen` and `rejected` with a `prompt`, or both as messages.

    Both are trained on, as the loss says: one of pairs (`dpo`, `ipo`, `orpo`, `simpo`).
    """

    kind: Literal["preference"] = "preference"

    example_kind: ClassVar[str] = "pairs"

    def encoder(self, tokenizer: Tokenizer, window: int) -> Encoder:
        return SideEncoder(
            {side: self.writer.encoder(tokenizer, window // 2) for side in SIDES},
            lambda example, side, where: read_answer(example, side, self.of, where),
        )

    def prepare(self, table: TokenTable, tokenizer: Tokenizer, window: int) -> Examples:
        """Pairs of `table`, each answer in half a row.

        Raises:
          ValueError: both answers of a pair are the same tokens, more pairs than `over_long` do not
            fit (names the rows), or a template writes one answer as several texts.
        """
        good, bad = (
            self.writer.prepare(side_table(table, side), tokenizer, window // 2) for side in SIDES
        )
        for examples in (good, bad):
            check_single(examples)
        fits = (good.lengths > 0) & (bad.lengths > 0)
        for row in np.flatnonzero(fits & (good.truncated | bad.truncated)).tolist():
            first, second = (prompt_of(whole_piece(each, row)) for each in (good, bad))
            fits[row] = np.array_equal(first, second)
        note = self.check_long(table.name, ~fits, window)
        alike = fits & (good.lengths == bad.lengths) & (good.trained == bad.trained)
        equal = [
            row
            for row in np.flatnonzero(alike).tolist()
            if np.array_equal(whole_piece(good, row).targets, whole_piece(bad, row).targets)
        ]
        if equal:
            raise ValueError(
                f"{table.name}: the chosen answer and the rejected one are the same tokens in "
                f"{len(equal)} of {len(fits)} pairs ({name_rows(np.asarray(equal))}): there is "
                "nothing to prefer. Remove these rows."
            )

        def piece(index: int, start: int, stop: int) -> Piece:
            sides = (with_roles(good, index, 0, GOOD), with_roles(bad, index, 1, BAD))
            return joined(sides).between(start, stop)

        return Examples(
            name=table.name,
            lengths=np.where(fits, good.lengths + bad.lengths, 0),
            trained=np.where(fits, good.trained + bad.trained, 0),
            bytes=None,  # nats of bad answers are no code for a text
            truncated=fits & (good.truncated | bad.truncated),
            splittable=False,
            piece=piece,
            complete=True,
            stops=good.stops,
            note=", ".join(filter(None, ("pairs", good.note, note))),
            sidecar_files=good.sidecar_files,
        )


class SideEncoder:
    """The `Encoder` of examples that are several records: that of each, side by side."""

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        to_record: Callable[[Mapping[str, Any], str, str], Mapping[str, Any]],
    ):
        """Takes nothing yet.

        Args:
          encoders: side -> its encoder.
          to_record: (example, side, where) -> the record that is encoded.
        """
        self._encoders, self._to_record = encoders, to_record
        self.types = {
            f"{side}_{name}": kind
            for side, encoder in encoders.items()
            for name, kind in encoder.types.items()
        }
        self.key = {"sides": {side: dict(encoder.key) for side, encoder in encoders.items()}}

    def add(self, example: Mapping[str, Any], where: str) -> int:
        """Takes every side of one example."""
        return sum(
            encoder.add(self._to_record(example, side, where), where)
            for side, encoder in self._encoders.items()
        )

    def take(self) -> dict[str, Encoded]:
        """The tokens of what was added."""
        return {
            f"{side}_{name}": encoded
            for side, encoder in self._encoders.items()
            for name, encoded in encoder.take().items()
        }


def side_table(table: TokenTable, side: str) -> TokenTable:
    """The part of a table that one side's encoder made."""
    prefix = f"{side}_"
    names = {name: name.removeprefix(prefix) for name in table.tokens if name.startswith(prefix)}
    tokens = {name: table.tokens[full] for full, name in names.items()}
    return TokenTable(table.name, tokens, {name: table.bytes[full] for full, name in names.items()})


def read_answer(example: Mapping[str, Any], side: str, of: Objective, where: str) -> dict[str, Any]:
    """One answer and its prompt as a labelled record.

    Raises:
      ValueError: it has none, or it is messages and `of` reads none.
    """
    if side not in example:
        raise ValueError(
            f"{where}: there is no field {side!r}, only {sorted(example)}. Name it in the source's "
            '`fields`, or set its format="preference" ("labelled answers" for answers that are '
            "good or bad one by one)."
        )
    answer = example[side]
    if not isinstance(answer, list):
        return {"prompt": example.get("prompt"), "completion": answer}
    if not of.reads_conversations:
        raise ValueError(f'{where}: {side!r} is messages: use data.objective.of=dict(kind="chat").')
    beside = ("tools", "template_arguments")
    return {"messages": answer} | {name: example[name] for name in beside if name in example}


def check_single(examples: Examples) -> None:
    """Raises ValueError where a record became several examples; names the rows."""
    if examples.rows is None:
        return
    rows, counts = np.unique(examples.rows, return_counts=True)
    raise ValueError(
        f"{examples.name}: the chat template writes the answer in several texts "
        f"({name_rows(rows[counts > 1])}): write each of its turns as an example of its own."
    )


def whole_piece(examples: Examples, index: int) -> Piece:
    """All of an example."""
    return examples.piece(index, 0, int(examples.lengths[index]))


def first_target(piece: Piece) -> int:
    """The place that says the answer's first token."""
    return int(np.argmax(piece.weights > 0))


def prompt_of(piece: Piece) -> np.ndarray:
    """The tokens of the prompt."""
    return piece.tokens[: first_target(piece) + 1]


def with_roles(examples: Examples, index: int, document: int, role: int) -> Piece:
    """An answer as one of an example's documents."""
    piece = whole_piece(examples, index)
    roles = np.where(piece.weights > 0, role, 0).astype(np.int32)
    documents = np.full(len(roles), document, np.int32)
    return dataclasses.replace(piece, documents=documents, roles=roles)
