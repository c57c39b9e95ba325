"""Chat templates: how a conversation is written for a model that was trained on conversations.

A template is a Jinja program that comes with a model, from anybody; it runs in Jinja's sandbox, as
in transformers, and can read nothing but the conversation.
"""

from __future__ import annotations

import datetime
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
    found = json.loads(files.get(SETTINGS, b"{}")).get("chat_template")
    if isinstance(found, list):  # several, by name
        found = next((one["template"] for one in found if one["name"] == "default"), None)
    return found


def render(
    template: str, messages: Sequence[Message], *, begin: str = "", end: str = "", ask: bool = True
) -> str:
    """A conversation as text.

    Args:
      messages: `{"role": "user", "content": ...}`, oldest first.
      begin, end: the names of the tokenizer's special tokens, which templates write out.
      ask: whether the text ends where the model is to answer.

    Raises:
      ValueError: the template is broken, or refuses this conversation.
    """
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(
            messages=list(messages), bos_token=begin, eos_token=end, add_generation_prompt=ask
        )
    except (jinja2.TemplateError, TypeError, RecursionError) as error:
        raise ValueError(f"the chat template does not take this conversation: {error}") from None


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
