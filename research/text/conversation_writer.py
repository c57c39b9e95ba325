"""Writes conversations with a chat template, and finds in them what the assistant says.

An answer is what the template adds to a conversation that ends where the model is asked for it:
that holds for any template, and what the generation prompt supplies is never part of an answer.
Answers share an example as long as the template writes the conversation so far as the beginning of
what follows; where it rewrites it (drops earlier thoughts, say), the next answer begins another.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from research.text import chat_template
from research.text.conversation import REASONING, Conversation
from research.text.parts import Part, PartEncoder
from research.text.rendering import RenderingError, View
from research.text.special_names import PLACE, SpecialNames, find_blocks
from research.text.template_checks import (
    check_fields,
    check_tool_results,
    check_tools,
    check_variables,
)
from research.text.template_input import TemplateInput
from research.text.thought_names import ThoughtNames
from research.text.tokenizer import Tokenizer
from research.text.whole_conversation import check_marked, check_others, keep_marked


@dataclasses.dataclass(frozen=True)
class ConversationExample:
    """Answers of a conversation that are trained on in one text."""

    parts: tuple[Part, ...]
    # Numbers of their messages.
    answers: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Answer:
    """An answer as it is asked for, and its parts."""

    number: int
    prompt: str
    parts: tuple[Part, ...]

    @property
    def whole(self) -> str:
        return self.prompt + "".join(part.text for part in self.parts)


class Writer:
    """Writes conversations as text, and text as tokens.

    A special token that a message spells out is written by the tokens of its characters: no
    message can end its own turn, or begin another's.
    """

    def __init__(
        self,
        template: str,
        tokenizer: Tokenizer,
        template_arguments: Mapping[str, Any] | None = None,
        reasoning: Literal["train", "mask"] = "train",
        ignored_fields: Sequence[str] = (),
    ):
        """Prepares a template.

        Args:
          template: a Jinja program.
          tokenizer: the model's.
          template_arguments: variables of the template; a conversation's own come before them.
          reasoning: whether what the assistant thinks is trained on.
          ignored_fields: of messages and records, which are passed over.

        Raises:
          ValueError: it is no template, or never reads one of the arguments.
        """
        self.template, self._tokenizer = template, tokenizer
        self._arguments = dict(template_arguments or {})
        self._masks_reasoning = reasoning == "mask"
        self._ignored = frozenset(ignored_fields)
        self._checked_tools = {"null"}
        self._checked_roles: set[frozenset[str]] = set()
        self._names, self._thoughts = SpecialNames(tokenizer.special), ThoughtNames(tokenizer)
        by_length = sorted(tokenizer.named_tokens, key=len, reverse=True)
        self._named_token = re.compile("|".join(map(re.escape, by_length)))
        self._encoder = PartEncoder(tokenizer, self._names)
        own = template == tokenizer.chat_template
        self.tool_template = (tokenizer.tool_template if own else None) or template
        check_variables(chat_template.read_contents(template).names, self._arguments)

    def write(self, conversation: Conversation) -> list[ConversationExample]:
        """The examples that train the conversation's answers; none where no answer has weight.

        Raises:
            ValueError: the template does not take it, leaves out something that it says, or what
              is said cannot be told from it.
        """
        trained_answers = [i for i in conversation.answers if conversation.weights[i] > 0]
        if not trained_answers:
            return []
        source = self._open(conversation)
        numbers = [i for i in conversation.answers if i <= trained_answers[-1]]
        answers = self._answers(source, numbers, trained_answers)
        texts = {answer.number: answer.whole for answer in answers}
        self._check(source, {number: texts[number] for number in trained_answers})
        if source.contents.has_generation:
            answers = self._keep_marked(source, answers, trained_answers)
            trained_answers = [a.number for a in answers if any(part.weight for part in a.parts)]
        examples: list[ConversationExample] = []
        for group in _group(answers):
            trained = [i for i, part in enumerate(group.parts) if part.weight and part.end]
            numbers_here = [i for i in group.answers if i in trained_answers]
            if trained:  # what follows the last of them is of no use
                parts = group.parts[: trained[-1] + 1]
                examples.append(ConversationExample(parts, tuple(numbers_here)))
        return examples

    def _keep_marked(
        self, source: TemplateInput, answers: Sequence[_Answer], trained: Sequence[int]
    ) -> list[_Answer]:
        """The answers with weight where the template marks them in the whole conversation."""
        (rendered,) = source.render([View(len(source.messages))])
        if isinstance(rendered, RenderingError):
            raise _refusal(rendered)
        result = [
            dataclasses.replace(answer, parts=keep_marked(
                answer.number, answer.prompt, answer.parts, rendered, not self._masks_reasoning
            )) if answer.number in trained else answer
            for answer in answers
        ]  # fmt: skip
        check_marked(part for answer in result for part in answer.parts)
        check_others(source, self._checked_roles)
        return result

    def prompt(self, conversation: Conversation) -> list[Part]:
        """The conversation up to where its next answer begins."""
        source = self._open(conversation)
        (whole,) = source.render([View(len(source.messages), ask=True)])
        if isinstance(whole, RenderingError):
            raise _refusal(whole)
        whole = source.without_blocks(whole)
        self._check(source, {len(source.messages): whole})
        # Tokens are those of training, where answers are tokenized apart.
        *_, parts = [(), *(g.parts for g in _group(self._answers(source, conversation.answers)))]
        text = "".join(part.text for part in parts)
        if not whole.startswith(text):
            parts, text = (), ""
        return [*parts, Part(whole[len(text) :])]

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """The tokens of `prompt`."""
        (ids,) = self.encode([self.prompt(conversation)])
        return [token for part in ids for token in part]

    def unmark(self, text: str) -> str:
        """Text as the messages had it."""
        return self._names.unmark(text)

    def encode(self, conversations: Sequence[Sequence[Part]]) -> list[list[list[int]]]:
        """The tokens of every part of every conversation."""
        return self._encoder.encode(conversations)

    def _open(self, conversation: Conversation) -> TemplateInput:
        arguments = self._arguments | dict(conversation.template_arguments)
        arguments = {k: v for k, v in arguments.items() if k not in self._ignored}
        tools = [] if "tools" in self._ignored else list(conversation.tools)
        template = self.tool_template if tools else self.template
        check_variables(chat_template.read_contents(template).names, arguments, bool(tools))
        messages = [
            {name: value for name, value in message.items() if name not in self._ignored}
            for message in conversation.messages
        ]
        tokens = self._tokenizer.template_tokens
        others = {"tools": tools or None, "documents": None, **arguments}
        source = TemplateInput(
            conversation=conversation,
            template=template,
            messages=messages,
            variables=tokens | others,
            marked=self._names.mark(messages),
            marked_variables=tokens | self._names.mark(others),
            names=self._names,
            ignored=self._ignored,
        )
        check_tool_results(source)
        return source

    def _check(self, source: TemplateInput, texts: Mapping[int, str]) -> None:
        """Raises ValueError for what the template leaves out; the same tools are looked at once."""
        check_fields(source, texts)
        tools = json.dumps(source.variables["tools"])
        if tools not in self._checked_tools:
            check_tools(source, texts)
            self._checked_tools = {tools}

    def _answers(
        self, source: TemplateInput, numbers: Sequence[int], trained: Sequence[int] = ()
    ) -> list[_Answer]:
        """The assistant's messages; those that are not trained on are left out if they fail."""
        views = [(View(i, ask=True), View(i + 1)) for i in numbers]
        texts = source.render(list(itertools.chain.from_iterable(views)))
        answers = []
        for number, prompt, whole in zip(numbers, texts[::2], texts[1::2], strict=True):
            try:
                weight = source.conversation.weights[number] if number in trained else 0.0
                answers.append(self._answer(source, number, prompt, whole, weight))
            except ValueError:
                if number in trained:
                    raise
        return answers

    def _answer(
        self,
        source: TemplateInput,
        number: int,
        prompt: str | RenderingError,
        rendered: str | RenderingError,
        weight: float,
    ) -> _Answer:
        for text in (prompt, rendered):
            if isinstance(text, RenderingError):
                raise _refusal(text)
        prompt = source.without_blocks(str(prompt))
        whole, blocks = str(rendered), [(0, len(str(rendered)))]
        if source.contents.has_generation:
            whole, blocks = find_blocks(whole)
        if not whole.startswith(prompt):
            raise self._difference(source, number, prompt, whole)
        # The model has stopped where white space follows.
        last = max((stop for _, stop in blocks), default=0)
        stop = len(whole[:last].rstrip())
        if stop <= len(prompt):
            raise ValueError(
                f"The chat template's {{% generation %}} blocks hold nothing of message {number}: "
                "give the objective another `template`."
            )
        if not source.contents.has_generation:
            stop = self._turn_end(source, number, prompt, whole, stop)
        answer = whole[len(prompt) : stop]
        end = self._check_answer(source, number, prompt, answer)
        start = len(prompt)
        if self._masks_reasoning:
            start = max(start, self._thought_end(source, number, whole, start))
        # The white space at the end of a block is trained as the block says.
        after = last if source.contents.has_generation else stop
        inner_edges = [edge for block in blocks for edge in block if len(prompt) < edge < stop]
        parts = []
        edges = sorted({len(prompt), start, stop, after, *inner_edges})
        for first, next_edge in itertools.pairwise(edges):
            is_answer = first >= start and any(b[0] <= first < b[1] for b in blocks)
            name = end if next_edge == stop else ""
            parts.append(Part(whole[first:next_edge], weight if is_answer else 0.0, name))
        return _Answer(number, prompt, tuple(parts))

    def _turn_end(
        self, source: TemplateInput, number: int, prompt: str, whole: str, stop: int
    ) -> int:
        """Where an answer ends: `stop`, or before the header of the next one, which a template that
        ignores whether it is asked for an answer writes after each.

        Of an answer that is only text, the first token with a name ends it, and the rest is header.
        """
        match = self._named_token.search(whole, len(prompt), stop)
        if not match or match.end() == stop:
            return stop
        extra = [name for name in source.marked[number] if name not in ("role", "content")]
        changes = ((number, "content", PLACE), *((number, name) for name in extra))
        asking, plain = source.render(
            [View(number + 1, ask=True), View(number + 1, False, changes)]
        )
        if asking != whole or isinstance(plain, RenderingError):
            return stop
        tail = plain.partition(PLACE)[2].rstrip()
        end = self._named_token.search(tail)
        header = tail[end.end() :] if end else ""
        return stop - len(header) if whole.endswith(header, 0, stop) else stop

    def _check_answer(self, source: TemplateInput, number: int, prompt: str, answer: str) -> str:
        """The name of the token that ends an answer.

        Raises:
            ValueError: the template changes the answer, does not end it, or never asks for it.
        """
        content = source.marked[number]["content"]
        self._thoughts.check(number, self.unmark(content))
        pieces = [content] if content.strip() in answer else re.split("</?think>", content)
        head, tail, rest = "", answer, answer
        for piece in filter(None, map(str.strip, pieces)):
            before, text, rest = rest.partition(piece)
            if not text:
                raise ValueError(
                    f"The chat template changes what the assistant says (message {number}), which "
                    f"must be trained on as it is: it does not write {piece!r:.60}. Give "
                    "the objective another `template`."
                )
            if tail == answer:
                head = before
            tail = rest
        if self._names.is_in(head):
            (beginning,) = source.render([View(number)])
            if beginning == prompt:
                raise ValueError(
                    f"The chat template writes {head!r} before what the assistant says, and not "
                    "where the model is asked: see add_generation_prompt in the `template`."
                )
        ends = [name for name in self._tokenizer.named_tokens if tail.endswith(name)]
        if not ends and source.contents.has_generation:
            raise ValueError(
                "The chat template's {% generation %} block of what the assistant says (message "
                f"{number}) ends with {tail!r:.60}, which is no special token: the model would "
                "never stop. Write the token that ends the turn before {% endgeneration %}."
            )
        if not ends:
            raise ValueError(
                f"The chat template ends what the assistant says with {tail!r}, which is no "
                "special token: the model would never stop. Write eos_token in the `template`."
            )
        return max(ends, key=len)

    def _difference(
        self, source: TemplateInput, number: int, prompt: str, whole: str
    ) -> ValueError:
        """Why an answer cannot be told: the whole does not go on from where it is asked for."""
        at = len(os.path.commonprefix([prompt, whole]))
        here, there = (self._names.unmark(text[at : at + 40]) for text in (prompt, whole))
        (beginning,) = source.render([View(number)])
        if not isinstance(beginning, RenderingError) and at >= len(beginning.rstrip()):
            return ValueError(
                f"The chat template asks for message {number} with {here!r}, and writes it as "
                f"{there!r}: the model would be trained on another text than it is asked with. "
                "Set the objective's `template_arguments` so that both agree (enable_thinking, for "
                "one), or give it another `template`."
            )
        advice = "Give the objective another `template`."
        if number - 1 in source.conversation.answers:
            advice = (
                f"Messages {number - 1} and {number} are both the assistant's: write them as one, "
                "or give the objective another `template`."
            )
        return ValueError(
            f"The chat template writes what comes before message {number} as {here!r} where the "
            f"model is asked for it, and as {there!r} once it is answered: the model would be "
            f"trained on another text than it is asked with. {advice}"
        )

    def _thought_end(self, source: TemplateInput, number: int, whole: str, start: int) -> int:
        """Where what the assistant says begins after its thoughts; `start`, of its answer, where it
        has none, and after an empty block where the template writes one.

        Raises:
            ValueError: it cannot be told.
        """
        message = source.marked[number]
        content, thoughts = message["content"], [name for name in REASONING if name in message]
        match = self._thoughts.pattern.match(content)
        if not match and not thoughts:
            empty = self._thoughts.pattern.match(whole, start)
            return empty.end() if empty else start
        first = match.end() if match else len(content) - len(content.lstrip())
        changes: list[tuple[tuple[Any, ...], ...]] = [
            ((number, "content", content[:first] + PLACE + content[first:]),)
        ]
        changes += [tuple((number, n, message[n].rstrip() + PLACE) for n in thoughts)] * (not match)
        for text in source.render([View(number + 1, changes=each) for each in changes]):
            if not isinstance(text, RenderingError):
                before, sign, _ = source.without_blocks(text).partition(PLACE)
                if sign and whole.startswith(before):
                    return len(before)
        raise ValueError(
            f"The chat template does not show where the thoughts of message {number} end, so that "
            'they cannot be masked: set the objective\'s reasoning="train", or another `template`.'
        )


def _group(answers: Sequence[_Answer]) -> Iterator[ConversationExample]:
    """Answers that share a text: each is asked for where the one before it has been said."""
    parts: tuple[Part, ...] = ()
    numbers: tuple[int, ...] = ()
    text = ""
    for answer in answers:
        if numbers and not answer.prompt.startswith(text):
            yield ConversationExample(parts, numbers)
            parts, numbers, text = (), (), ""
        parts += (Part(answer.prompt[len(text) :]), *answer.parts)
        numbers += (answer.number,)
        text = answer.whole
    if numbers:
        yield ConversationExample(parts, numbers)


def _refusal(error: RenderingError) -> ValueError:
    return ValueError(f"the chat template does not take this conversation: {error}")
