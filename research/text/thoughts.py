"""What an answer says after its thoughts, whatever a model marks them with.

The marks are read off the template, which is asked to write an answer with thoughts and one
without, and off the tokenizer, whose tokens are named for it. Where they are special tokens, which
no text has, a text of an answer writes their names.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from research.text.conversation import REASONING, from_messages
from research.text.conversation_writer import Writer
from research.text.thought_names import THINK, WORDS, Pair, thought_pairs
from research.text.tokenizer import Tokenizer

# What a template is asked to write, in words that are none of its own.
_THOUGHT, _ANSWER = "probe thought", "probe answer"
# Tokens at a prompt's end in which a mark is looked for.
_TAIL = 32


@dataclasses.dataclass(frozen=True)
class ThoughtMarks:
    """What stands before a model's thoughts and behind them."""

    pairs: tuple[Pair, ...] = (THINK,)
    # special tokens in them, which an answer's text writes out: id -> name
    tokens: Mapping[int, str] = dataclasses.field(default_factory=dict)

    def decode(self, tokenizer: Tokenizer, ids: Sequence[int]) -> str:
        """The text of an answer, its marks written out."""
        if self.tokens.keys().isdisjoint(ids):
            return tokenizer.decode(ids)
        return "".join(tokenizer.stream(ids, names=self.tokens))

    def are_open(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends where the model is to think."""
        end = tokenizer.decode(prompt_ids[-_TAIL:], special=True).rstrip()
        return any(end.endswith(begin) for begin, _ in self.pairs)

    def split(self, text: str, are_open: bool = False) -> tuple[str, str]:
        """The thoughts of an answer, and what it says after them: nothing where they do not end.

        Args:
          are_open: whether the prompt began them.
        """
        places = [(text.rfind(end), end) for _, end in self.pairs]
        place, end = max(places, key=lambda pair: pair[0] + len(pair[1]) * (pair[0] >= 0))
        if place >= 0:
            return text[:place], text[place + len(end) :]
        has_begun = any(text.lstrip().startswith(begin) for begin, _ in self.pairs)
        return (text, "") if are_open or has_begun else ("", text)

    def without_thoughts(self, text: str, are_open: bool = False) -> str:
        """What an answer says after its thoughts; see `split`."""
        return self.split(text, are_open)[1]

    def message(self, text: str, are_open: bool = False) -> dict[str, str]:
        """An answer as a message of a conversation: where its marks are special tokens, which no
        message can spell, its thoughts have a field of their own."""
        thoughts, answer = self.split(text, are_open)
        names = [name for name in self.tokens.values() if name in text]
        if not names:
            return {"role": "assistant", "content": text}
        begin = next((begin for begin, _ in self.pairs if thoughts.lstrip().startswith(begin)), "")
        thoughts = thoughts.lstrip().removeprefix(begin).strip()
        fields = dict.fromkeys(REASONING[:2], thoughts) if thoughts else {}
        return {"role": "assistant", "content": answer, **fields}

    def count_left_out(
        self, tokenizer: Tokenizer, answers: Iterable[Sequence[int]]
    ) -> Counter[str]:
        """Special tokens in answers that their texts leave out: name -> answers that hold it."""
        hidden = tokenizer.special_ids - self.tokens.keys()
        ids = [id for answer in answers for id in hidden.intersection(answer)]
        names = {id: name for name, id in tokenizer.tokens().items()} if ids else {}
        return Counter(names[id] for id in ids)


def find_marks(
    tokenizer: Tokenizer, writer: Writer | None = None, pair: Sequence[str] | None = None
) -> ThoughtMarks:
    """The marks of a model's thoughts.

    Args:
      writer: its chat template; None: it has none.
      pair: what its thoughts begin and end with, where that is said; it comes beside the others.
    """
    own_pairs = [] if pair is None else [(pair[0], pair[1])]
    template_pairs, probe = ([], "") if writer is None else _of_template(writer)
    pairs = tuple(
        dict.fromkeys([*own_pairs, *template_pairs, *thought_pairs(tokenizer.named_tokens), THINK])
    )
    text = "\n".join([probe, *(mark for each in pairs for mark in each)])
    ids = tokenizer.tokens()
    return ThoughtMarks(pairs, {ids[name]: name for name in tokenizer.special if name in text})


def _of_template(writer: Writer) -> tuple[list[Pair], str]:
    """The marks that a template writes around the thoughts of an answer, none where it takes none,
    and all that it writes there."""
    thoughts = dict.fromkeys(REASONING[:2], _THOUGHT)
    try:
        prompt, answer = _write(writer, thoughts)
        _, plain_answer = _write(writer, {})
    except ValueError:
        return [], ""
    before, _, rest = answer.partition(_THOUGHT)
    between, sign, _ = rest.partition(_ANSWER)
    head = plain_answer.partition(_ANSWER)[0].strip()
    if not sign or not between.strip():
        return [], ""
    # what comes before an answer without thoughts also ends those that are there (gpt-oss)
    end = head if head and between.strip().endswith(head) else between.strip()
    begin = before.strip() or prompt.rstrip().rpartition("\n")[2]  # the prompt may begin them
    is_mark = before.strip() or not WORDS.isdisjoint(re.findall("[a-z]+", begin.lower()))
    return ([(begin, end)], before + between) if is_mark else ([], "")


def _write(writer: Writer, fields: Mapping[str, str]) -> tuple[str, str]:
    """A question as the model is asked it, and its answer."""
    answer = {"role": "assistant", "content": _ANSWER, **fields}
    parts = writer.write(from_messages([{"role": "user", "content": "?"}, answer]))[-1].parts
    texts = [writer.unmark(part.text) for part in parts]
    return texts[0], "".join(texts[1:])
