"""Chat templates: how a conversation is written for a model that was trained on conversations.

A template is a Jinja program that comes with a model, from anybody; it runs in Jinja's sandbox, as
in transformers, and can read nothing but the conversation.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import sandbox

TEMPLATE, SETTINGS = "chat_template.jinja", "tokenizer_config.json"
Message = Mapping[str, str]


def find_template(files: Mapping[str, bytes]) -> str | None:
    """The template among a model's companions: a file of its own, or in the tokenizer's config."""
    if TEMPLATE in files:
        return files[TEMPLATE].decode()
    template = json.loads(files.get(SETTINGS, b"{}")).get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((one["template"] for one in template if one["name"] == "default"), None)
    if template is not None and not isinstance(template, str):
        raise ValueError(f"the chat template is no text: {template!r:.40}")
    return template


def find_stops(files: Mapping[str, bytes]) -> tuple[int, ...]:
    """The tokens that end what an imported model says, as its configs list them."""
    stop_ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        ends = json.loads(files.get(name, b"{}")).get("eos_token_id")
        stop_ids += [
            end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int
        ]
    return tuple(dict.fromkeys(stop_ids))


def check(template: str) -> None:
    """Refuses what is no template.

    Raises:
      ValueError: saying where it breaks.
    """
    try:
        _environment().parse(template)
    except (jinja2.TemplateError, TypeError, RecursionError) as error:
        raise ValueError(f"no template of Jinja: {error}") from None


@functools.cache
def _environment() -> sandbox.ImmutableSandboxedEnvironment:
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    return environment


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)


def render(
    template: str,
    messages: Sequence[Message],
    *,
    begin: str = "",
    end: str = "",
    ask: bool = True,
    today: datetime.date | None = None,
) -> str:
    """A conversation as text.

    Args:
      messages: `{"role": "user", "content": ...}`, oldest first.
      begin, end: the names of the tokenizer's special tokens, which templates write out.
      ask: whether the text ends where the model is to answer.
      today: what a template that writes the date takes for it; None: the date.

    Raises:
      ValueError: the template is broken, or refuses this conversation.
    """
    try:
        return _compiled(template).render(
            messages=list(messages),
            bos_token=begin,
            eos_token=end,
            add_generation_prompt=ask,
            strftime_now=(today or datetime.datetime.now()).strftime,
        )
    except (jinja2.TemplateError, TypeError, RecursionError) as error:
        raise ValueError(f"the chat template does not take this conversation: {error}") from None


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
