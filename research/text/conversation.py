"""Conversations as text and as tokens, written with a chat template.

What the assistant says is found by writing the beginnings of a conversation with the template: from
where the model is asked for an answer to where the answer has ended. That holds for any template
that writes a conversation as the beginning of its continuation; others are refused.
"""

import dataclasses
import datetime
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from research.text import chat_template
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
    is_answer: bool = False
    end: str = ""


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
        def mark(match: re.Match[str]) -> str:
            return f"{_MARK}{self._numbers[match.group()]}{_MARK}"

        return [{**m, "content": self._names.sub(mark, m["content"])} for m in messages]

    def escape(self, text: str) -> str:
        """Text as the messages had it."""
        return _MARKED.sub(lambda match: self._unwritten[int(match.group(1))], text)

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

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of `prompt`."""
        (ids,) = self.encode([self.prompt(messages)])
        return [token for part in ids for token in part]

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
            answer = after[
                len(before) :
            ].rstrip()  # The model has stopped where white space follows.
            content = message["content"].strip()
            first = answer.find(content)
            head, tail = answer[: max(first, 0)], answer[first + len(content) :]
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
            ends = [name for name in self._tokenizer.named_tokens if tail.endswith(name)]
            if not ends:
                raise ValueError(
                    f"The chat template ends what the assistant says with {tail!r}, which is no "
                    "special token: the model would never stop. Write eos_token in the `template`."
                )
            end = max(ends, key=len)
            parts += [Part(whole[at : len(before)]), Part(answer, is_answer=True, end=end)]
            at = len(before) + len(answer)
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
        texts = iter(self._tokenizer.encode_batch(pieces, special=True))
        names = iter(self._tokenizer.encode_batch(plain))

        def tokens(part: Part) -> list[int]:
            ids = list(next(texts))
            for _ in _MARKED.findall(part.text):
                ids += [*next(names), *next(texts)]
            return ids

        return [[tokens(part) for part in parts] for parts in conversations]


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
