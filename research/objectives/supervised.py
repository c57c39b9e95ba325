"""Say the completion that belongs to a prompt. Only the completion and its end are trained on."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np

from research.config.schema import Share
from research.objectives.base import Examples, Objective, Piece, name_rows, only_text
from research.objectives.own_template import check_own_template
from research.text.conversation import Conversation
from research.text.token_table import TokenTable
from research.text.tokenizer import Tokenizer

_SLOT = "{prompt}"


@dataclasses.dataclass(frozen=True)
class Supervised(Objective):
    """An example reads `begin head prompt tail completion` and is trained on `completion end`.

    Head and tail are the fixed parts of the template. All four parts are tokenized apart, in
    training, scoring and generation alike, so that the same token boundaries are seen everywhere.
    """

    # Text around the prompt, with `{prompt}` once. Names of special tokens in it (`<|im_start|>`)
    # are honoured. End each fixed part at a natural token boundary, such as a newline.
    template: str = "{prompt}\n"
    # Which side of a prompt that is too long is removed. Only the prompt's own text is ever cut,
    # never the fixed parts or the completion.
    cut: Literal["left", "right"] = "right"
    # Tokens kept free for completion and end-of-text when a prompt is cut (a longer completion
    # takes what it needs), so that where the cut falls does not tell the completion's length.
    answer_tokens: int = 16
    # Whether the tokens before the completion see each other both ways (prefix LM, Raffel et al.
    # 2020).
    bidirectional: bool = False
    # Share of a source's examples whose completion may be too long for a row. They are left out;
    # more of them are refused.
    over_long: Share = 0.0

    kind: Literal["supervised"] = "supervised"

    fields: ClassVar[Mapping[str, bool]] = {"prompt": False, "completion": True}
    has_completions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.template.count(_SLOT) != 1:
            raise ValueError(
                f"The template must hold {_SLOT} exactly once, not "
                f"{self.template.count(_SLOT)} times: {self.template!r}."
            )
        if self.cut not in ("left", "right"):
            raise ValueError(f"cut must be 'left' or 'right', not {self.cut!r}.")
        if self.answer_tokens < 0:
            raise ValueError(f"answer_tokens must not be negative, not {self.answer_tokens}.")

    def fixed(self, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """Token ids of the template's head and tail, without the begin token."""
        head, tail = self.template.split(_SLOT)
        return tokenizer.encode(head, special=True), tokenizer.encode(tail, special=True)

    def encode_prompt(
        self,
        tokenizer: Tokenizer,
        prompt: str,
        window: int,
        answer: int = 0,
        shots: Sequence[int] = (),
    ) -> tuple[list[int], bool]:
        """What the model reads before it answers: exactly what it reads in training.

        Args:
          tokenizer: the model's.
          prompt: the input text, without the template.
          window: tokens that the model reads at most, prompt and answer together.
          answer: tokens of the longest answer that must fit, with end-of-text; `answer_tokens`
            are kept free for it at least.
          shots: token ids of worked examples, placed between the begin token and the head.

        Returns:
          Token ids from the begin token to the end of the template's tail, and whether the
          prompt was cut.

        Raises:
            ValueError: nothing of the prompt fits.
        """
        if self.bidirectional:
            raise ValueError(
                "The objective is bidirectional: such models can be trained, but decoding and "
                "choosing answers are causal and would not show them what they saw in training."
            )
        head, tail = self.fixed(tokenizer)
        ids = tokenizer.encode(prompt)
        answer = max(answer, self.answer_tokens)
        space = window - len(shots) - len(head) - len(tail) - answer
        if space < min(1, len(ids)):
            raise ValueError(
                f"A window of {window} tokens has no room for the prompt beside the template "
                f"({len(head) + len(tail)} tokens), the worked examples ({len(shots)}) and the "
                f"answer ({answer})."
            )
        start, stop = self._fit_lengths(len(ids), space)
        prompt_ids = ids[start:stop]
        return [tokenizer.begin_id, *shots, *head, *prompt_ids, *tail], len(prompt_ids) < len(ids)

    def prompt_ids(
        self, tokenizer: Tokenizer, conversation: Conversation, window: int
    ) -> tuple[list[int], bool]:
        """The user's message in the template, as `encode_prompt` writes it."""
        return self.encode_prompt(tokenizer, only_text(conversation), window)

    def check_template(self, tokenizer: Tokenizer) -> None:
        """Raises ValueError if a prompt is written unlike the tokenizer's own chat template."""

        def write(conversation: Conversation) -> list[int]:
            head, tail = self.fixed(tokenizer)
            prompt = tokenizer.encode(only_text(conversation))
            return [tokenizer.begin_id, *head, *prompt, *tail]

        check_own_template(write, tokenizer, "template")

    def _fit_lengths(self, length: int, space: int) -> tuple[int, int]:
        """Which stretch of a prompt of `length` tokens stays when there is `space` for it."""
        count = max(0, min(length, space))
        return (length - count, length) if self.cut == "left" else (0, count)

    def prepare(self, table: TokenTable, tokenizer: Tokenizer, window: int) -> Examples:
        """Labelled examples of `table`, prompts cut to `window` tokens.

        Raises:
            ValueError: more completions than `over_long` do not fit the window (names the rows).
        """
        prompts, completions = table["prompt"], table["completion"]
        head, tail = (np.asarray(part, np.int32) for part in self.fixed(tokenizer))
        begin = np.asarray([tokenizer.begin_id], np.int32)
        answers = completions.lengths  # With end-of-text, which is a target but never read.
        space = window - len(head) - len(tail) - np.maximum(answers, self.answer_tokens)
        fits = space >= np.minimum(1, prompts.lengths)
        short = np.flatnonzero(~fits)
        if len(short) > self.over_long * len(fits):
            row = int(short[0])
            raise ValueError(
                f"{table.name}, row {row}: the completion has {answers[row]} tokens with its end "
                f"(at least {self.answer_tokens} are kept free) and the template "
                f"{len(head) + len(tail)}: no room for the prompt in a window of {window}. So are "
                f"{len(short)} of {len(fits)} examples ({name_rows(short)}), and over_long allows "
                f"{self.over_long:.2%}. Answers are never cut: use a longer sequence_length, "
                "remove these rows, or leave them out with data.objective.over_long."
            )
        prompt_lengths = np.minimum(prompts.lengths, space)

        def piece(index: int, start: int, stop: int) -> Piece:
            prompt, completion = prompts[index], completions[index].astype(np.int32)
            first, last = self._fit_lengths(len(prompt), int(space[index]))
            before = np.concatenate([begin, head, prompt[first:last].astype(np.int32), tail])
            whole = np.concatenate([before, completion])
            # The last token before the completion says its first token.
            is_trained = np.arange(len(whole) - 1) >= len(before) - 1
            prefix = np.arange(len(whole) - 1) < len(before) if self.bidirectional else None
            return Piece(
                whole[:-1][start:stop],
                whole[1:][start:stop],
                is_trained.astype(np.float32)[start:stop],
                None if prefix is None else prefix[start:stop],
            )

        return Examples(
            name=table.name,
            lengths=np.where(fits, len(head) + len(tail) + prompt_lengths + answers, 0),
            trained=np.where(fits, answers, 0),
            bytes=np.where(fits, table.bytes["completion"], 0),
            truncated=fits & (prompt_lengths < prompts.lengths),
            splittable=False,
            piece=piece,
            note=f"{len(short):,} over-long left out" if len(short) else "",
        )
