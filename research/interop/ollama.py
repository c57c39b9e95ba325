"""Modelfiles for Ollama, whose templates are Go's and not Jinja's.

A chat template becomes one of Go's where every message is written alike wherever it stands: the
texts around each role's messages are read off conversations that the template writes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

from research.text import chat_template

# names that no template writes itself
_USER, _ANSWER, _SYSTEM, _NEXT = "GRAFTUSER", "GRAFTANSWER", "GRAFTSYSTEM", "GRAFTNEXT"


@dataclasses.dataclass(frozen=True)
class ChatSegments:
    """The texts around messages.

    Attributes:
      start: what a conversation without a system message begins with.
      system: the texts before and after a system message, which stands in place of `start`; None:
        the template takes none.
      user, assistant: the texts before and after each message.
      ask: what the answer to a conversation follows.
    """

    start: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    ask: str

    def write(self, messages: list[dict[str, str]]) -> str:
        """A conversation up to where the model is to answer."""
        text = "" if messages[0]["role"] == "system" else self.start
        sides = {"user": self.user, "assistant": self.assistant, "system": self.system or ("", "")}
        for message in messages:
            before, after = sides[message["role"]]
            text += before + message["content"] + after
        return text + self.ask

    def opens_with(self, opening: str) -> bool:
        """Whether every conversation begins so, before its first message."""
        starts = [self.start, *(self.system or ())[:1]]
        return all(start.startswith(opening) for start in starts)

    def without(self, opening: str) -> ChatSegments:
        """The same without the token that the server puts first itself."""
        system = self.system and (self.system[0].removeprefix(opening), self.system[1])
        return dataclasses.replace(self, start=self.start.removeprefix(opening), system=system)

    def template(self) -> str:
        """The same as a template of Go's."""
        start, ask = literal(self.start), literal(self.ask)
        first = "(index .Messages 0)"
        if self.system:
            before, after = map(literal, self.system)
            system = f"{before}{{{{ {first}.Content }}}}{after}"
            start = (
                f'{{{{ if eq {first}.Role "system" }}}}{system}{{{{ else }}}}{start}{{{{ end }}}}'
            )
        sides = {"user": self.user, "assistant": self.assistant}
        turns = ""
        for role, (before, after) in sides.items():
            turns += "{{ else if" if turns else "{{ if"
            turns += f' eq .Role "{role}" }}}}{literal(before)}{{{{ .Content }}}}{literal(after)}'
        return f"{start}{{{{ range .Messages }}}}{turns}{{{{ end }}}}{{{{ end }}}}{ask}"


def chat_segments(template: str, tokens: Mapping[str, str]) -> ChatSegments | None:
    """The texts around messages; None where they differ by what else is said, as with earlier
    answers that are rewritten. A date is that of training.

    Args:
      template: a chat template of Jinja.
      tokens: the special tokens that it sees, by name.
    """

    def write(*messages: tuple[str, str], ask: bool = False) -> str:
        content = [{"role": role, "content": text} for role, text in messages]
        return chat_template.render(template, content, tokens, ask=ask)

    user, answer, following = ("user", _USER), ("assistant", _ANSWER), ("user", _NEXT)
    try:
        one, two = write(user), write(user, answer)
        three, asking = write(user, answer, following), write(user, ask=True)
    except ValueError:
        return None
    if not (three.startswith(two) and two.startswith(one) and asking.startswith(one)):
        return None
    try:
        before, user_end = one.split(_USER)
        answer_start, answer_end = two.removeprefix(one).split(_ANSWER)
        user_start, _ = three.removeprefix(two).split(_NEXT)
        if not before.endswith(user_start):
            return None
    except ValueError:  # a message is written twice, or not at all
        return None
    segments = ChatSegments(
        before.removesuffix(user_start),
        _system(write, user_start),
        (user_start, user_end),
        (answer_start, answer_end),
        asking.removeprefix(one),
    )
    probes = [[user], [user, answer, following], [("system", _SYSTEM), user, answer, following]]
    for probe in probes if segments.system else probes[:2]:
        messages = [{"role": role, "content": text} for role, text in probe]
        if write(*probe, ask=True) != segments.write(messages):
            return None
    return segments


def _system(write, user_start: str) -> tuple[str, str] | None:
    """The texts around a system message, if the template takes one."""
    try:
        parts = write(("system", _SYSTEM), ("user", _USER)).split(_SYSTEM)
    except ValueError:
        return None
    if len(parts) != 2 or f"{user_start}{_USER}" not in parts[1]:
        return None
    return parts[0], parts[1].partition(f"{user_start}{_USER}")[0]


def literal(text: str) -> str:
    """A text inside one of Go's templates."""
    return text.replace("{{", '{{ "{{" }}')


def modelfile(
    model: str, template: str, adapter: str | None = None, stops: Sequence[str] = ()
) -> str | None:
    """A Modelfile; None where its syntax cannot hold the template, or the name of a file.

    Args:
      model, adapter: their files.
      template: Go's.
      stops: texts that end an answer.
    """
    files = f"{model}{adapter or ''}"
    if '"""' in template or template.endswith('"') or not files.isprintable():
        return None
    lines = [f"FROM {model}", *([f"ADAPTER {adapter}"] if adapter else [])]
    lines += [f'TEMPLATE """{template}"""', *(f"PARAMETER stop {json.dumps(t)}" for t in stops)]
    return "\n".join(lines)
