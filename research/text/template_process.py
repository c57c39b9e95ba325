"""The process that renders chat templates: a program, and the Jinja environment that it uses.

A template comes with a model, from anybody. Jinja's sandbox keeps it from reading anything but the
conversation; only a process of its own keeps it from taking all memory, or for ever. This program
reads requests from its standard input and answers them on its standard output, a line of JSON
each; it knows nothing of the project, so that it starts fast. Of a text that goes on from the one
before it, it sends only what is new.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import ext, nodes, parser, sandbox

try:
    import resource
except ImportError:  # not a Unix: no limits, and no other machine runs us
    resource = None  # type: ignore[assignment]

# Limits of one rendering: bytes of memory of the process, and characters.
MEMORY, CHARACTERS = 2**30, 2**25
# Characters of an error, whose words are the template's own.
_ERROR = 1000
# Stand where a `{% generation %}` block begins and ends; no characters of any text.
BLOCK_START, BLOCK_END = "\ufdd1", "\ufdd2"


class Generation(ext.Extension):
    """`{% generation %}`: what the assistant says, as transformers reads the tag."""

    tags = {"generation"}

    def parse(self, parser: parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("surround")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def surround(self, caller: Any) -> str:
        """The block's text between its signs."""
        return f"{BLOCK_START}{caller()}{BLOCK_END}"


def make_environment() -> sandbox.ImmutableSandboxedEnvironment:
    """Jinja with the settings, filters and functions that transformers gives to templates."""
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def render_views(
    template: jinja2.Template, request: Mapping[str, Any], seconds: float
) -> Iterator[dict[str, str]]:
    """Every view of a request: `{"text": ...}`, or `{"error": ...}`."""
    day = datetime.datetime.fromisoformat(request["today"])
    for view in request["views"]:
        if view["only_compile"]:
            yield {"text": ""}
            continue
        messages = request["messages"][: view["stop"]]
        for number, field, *value in view["changes"]:
            message = {k: v for k, v in messages[number].items() if k != field or value}
            messages[number] = message | ({field: value[0]} if value else {})
        variables = {k: v for k, v in request["variables"].items() if k not in view["without"]}
        variables |= view["variables"] | {
            "messages": messages,
            "add_generation_prompt": view["ask"],
            "strftime_now": day.strftime,
        }
        yield _render(template, variables, seconds)


def _render(
    template: jinja2.Template, variables: Mapping[str, Any], seconds: float
) -> dict[str, str]:
    with _time_limit(seconds):
        try:
            return {"text": _check_size(template.render(variables))}
        except Exception as error:  # whatever a template does wrong is its error, not ours
            return {"error": describe(error)}


def _check_size(text: str) -> str:
    if len(text) > CHARACTERS:
        raise jinja2.TemplateError(f"it writes more than {CHARACTERS:,} characters")
    return text


def describe(error: Exception) -> str:
    """What a template did wrong, in a line of bounded length."""
    message = _message(error)
    return message if len(message) <= _ERROR else f"{message[:_ERROR]}..."


def _message(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it needs more than {MEMORY >> 20} MiB of memory"
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    if isinstance(error, jinja2.TemplateError):
        return str(error)
    return f"{error} ({type(error).__name__})"


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Ends the process (SIGPROF's own doing) where the block computes for longer."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main(seconds: float) -> None:
    # Ctrl-C goes to every process of the terminal; this one ends when its input does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if resource is not None:
        with contextlib.suppress(ValueError, OSError):  # a lower limit is set already
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    environment = make_environment()
    templates: dict[int, jinja2.Template | str] = {}

    for line in sys.stdin:
        request = json.loads(line)
        number = request["template"]
        if "source" in request:
            with _time_limit(seconds):
                try:
                    templates[number] = environment.from_string(request["source"])
                except Exception as error:
                    templates[number] = describe(error)
        template = templates[number]
        if isinstance(template, str):
            replies: list[dict[str, Any]] = [{"error": template} for _ in request["views"]]
        else:
            replies = shorten(render_views(template, request, seconds))
        try:
            answer = json.dumps(replies)
        except MemoryError as error:
            answer = json.dumps([{"error": describe(error)} for _ in replies])
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


def shorten(replies: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Replies without the beginning that a text shares with the one before: `same` characters."""
    before = ""
    result: list[dict[str, Any]] = []
    for reply in replies:
        text = reply.get("text")
        if text is None:
            result.append(dict(reply))
            continue
        same = _common_length(before, text)
        result.append({"same": same, "text": text[same:]})
        before = text
    return result


def _common_length(first: str, second: str) -> int:
    """How many characters two texts begin alike with, by comparing halves: fast in long texts."""
    low, high = 0, min(len(first), len(second))
    if first[:high] == second[:high]:
        return high
    while low < high - 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low


if __name__ == "__main__":
    main(float(sys.argv[1]))
