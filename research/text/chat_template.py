"""Chat templates: how a conversation is written for a model that was trained on conversations.

A template is a Jinja program that comes with a model, from anybody; it runs in Jinja's sandbox, as
in transformers, can read nothing but the conversation, and runs in a process of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes

from research.text import rendering, template_process

TEMPLATE, SETTINGS = "chat_template.jinja", "tokenizer_config.json"
TOKEN_NAMES, ADDED = "special_tokens_map.json", "added_tokens.json"
# transformers' folder of templates that have names; a run keeps each beside its other files
ADDITIONAL = "additional_chat_templates"
_NAMED_FILE = re.compile(r"chat_template\.([\w+-][\w.+-]*)\.jinja")


def named_file(name: str) -> str:
    """The file of a run that keeps `additional_chat_templates/NAME.jinja`.

    Raises:
      ValueError: a name that no file of a run can have.
    """
    file = f"chat_template.{name}.jinja"
    if not _NAMED_FILE.fullmatch(file):
        raise ValueError(
            f"{ADDITIONAL}/{name}.jinja: a template's name has letters, digits, '.', '_', '+' and "
            "'-' alone; rename it, or move it away"
        )
    return file


TOOLS = named_file("tool_use")


def find_named(files: Mapping[str, bytes]) -> dict[str, str]:
    """The templates of `additional_chat_templates`, by name."""
    matches = {match[1]: file for file in files if (match := _NAMED_FILE.fullmatch(file))}
    return {name: files[file].decode() for name, file in matches.items()}


def find_template(files: Mapping[str, bytes]) -> str | None:
    """The template among a model's companions: a file of its own, or in the tokenizer's config."""
    if TEMPLATE in files:
        return files[TEMPLATE].decode()
    template = json.loads(files.get(SETTINGS, b"{}")).get("chat_template")
    if isinstance(template, list):  # several, by name; of two with one, the last, as transformers
        template = {one["name"]: one["template"] for one in template}.get("default")
    if template is not None and not isinstance(template, str):
        raise ValueError(f"the chat template is no text: {template!r:.40}")
    return template


def find_tool_template(files: Mapping[str, bytes]) -> str | None:
    """The template for conversations with tools, where there is one: in a file of its own, or in
    the tokenizer's config beside the one that is used."""
    if TOOLS in files:
        return files[TOOLS].decode()
    templates = json.loads(files.get(SETTINGS, b"{}")).get("chat_template")
    if not isinstance(templates, list):
        return None
    by_name = {one["name"]: one["template"] for one in templates}
    is_used = find_template(files) == by_name.get("default")
    return by_name.get("tool_use") if is_used else None


def read_settings(files: Mapping[str, bytes]) -> dict[str, Any]:
    """The tokenizer's config, as transformers has it: `special_tokens_map.json` goes before it,
    unless it lists the added tokens itself."""
    settings = json.loads(files.get(SETTINGS, b"{}"))
    names = {} if "added_tokens_decoder" in settings else json.loads(files.get(TOKEN_NAMES, b"{}"))
    return {**settings, **names}


# The tokens that transformers' classes have where a config is silent; null is none.
_CLASS_TOKENS = {
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {f"{role}_token": f"<{role}>" for role in "bos eos unk pad mask".split()},
}
# The class of a folder whose config names none.
_CLASSES = {
    **{"gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"},
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
}


def find_tokens(files: Mapping[str, bytes], known: Collection[str] = ()) -> dict[str, str]:
    """Special tokens by the names that templates know them by, as transformers has them: those of
    the tokenizer's config and of its class, no others. A token that is not there has no name.

    Args:
      files: of a model.
      known: the tokens that its tokenizer has; a class's own count only among them.
    """
    settings = read_settings(files)
    extra = settings.get("extra_special_tokens")
    by_name = {name: token for name, token in settings.items() if name.endswith("_token")}
    by_name |= extra if isinstance(extra, dict) else {}
    tokens = {name: t.get("content") if isinstance(t, dict) else t for name, t in by_name.items()}
    content = json.loads(files.get("tokenizer.json", b"{}"))
    for name, token in _class_tokens(files, settings, content).items():
        if token in known and name not in settings:
            tokens[name] = token
    return {name: token for name, token in tokens.items() if isinstance(token, str)}


def _class_tokens(
    files: Mapping[str, bytes], settings: Mapping[str, Any], content: Mapping[str, Any]
) -> Mapping[str, str]:
    """What transformers' class has where the config is silent."""
    config = json.loads(files.get("config.json", b"{}"))
    kind = settings.get("tokenizer_class") or _CLASSES.get(str(config.get("model_type")), "")
    kind = str(kind).removesuffix("Fast")
    if kind == "LlamaTokenizer" and "'ByteLevel'" in str(content.get("decoder")):
        return {}  # which transformers opens as a tokenizer of no class
    padding = content.get("padding") or {}
    return _CLASS_TOKENS.get(kind, {"pad_token": padding["pad_token"]} if padding else {})


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
    _parse(template)


def check_compiles(template: str) -> None:
    """The same, and refuses one that uses a filter or a test that there is not.

    Jinja computes constants where it compiles, so that this is done in the renderers' process.

    Raises:
      ValueError: saying where it breaks.
    """
    _parse(template)
    (result,) = rendering.render_views(template, [], {}, [rendering.View(0, only_compile=True)])
    if isinstance(result, rendering.RenderingError):
        raise ValueError(f"no template of Jinja: {result}")


def _parse(template: str) -> nodes.Template:
    try:
        return _environment().parse(template)
    except (jinja2.TemplateError, TypeError, RecursionError) as error:
        raise ValueError(f"no template of Jinja: {error}") from None


# Only to parse: nothing of a template is computed in this process.
_environment = functools.cache(template_process.make_environment)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a template is seen to do without running it."""

    # Names that it reads from outside.
    names: frozenset[str]
    # Whether it says itself what the assistant says, by `{% generation %}`.
    has_generation: bool


@functools.lru_cache(maxsize=8)
def read_contents(template: str) -> Contents:
    """What a template uses.

    Raises:
      ValueError: it is none.
    """
    tree = _parse(template)
    blocks = tree.find_all(nodes.ExtensionAttribute)
    return Contents(
        _input_names(tree),
        any(block.identifier == template_process.Generation.identifier for block in blocks),
    )


def _input_names(tree: nodes.Template) -> frozenset[str]:
    """Names that a template reads from outside: not those that it gives a value itself, except
    where it asks first whether they have one."""
    assigned = {macro.name for macro in tree.find_all(nodes.Macro)}
    optional: set[str] = set()
    for block in tree.find_all(nodes.AssignBlock):
        assigned |= _names(block.target)
    for node in tree.find_all(nodes.Assign):
        targets = _names(node.target)
        assigned |= targets
        if isinstance(node.node, nodes.Or | nodes.CondExpr):
            optional |= targets & _names(node.node)
    for test in tree.find_all((nodes.Test, nodes.Filter)):
        if test.name in ("defined", "undefined", "none", "default", "d") and test.node:
            optional |= _names(test.node)
    return frozenset(_free_names(tree, frozenset())) - (assigned - optional)


def _free_names(node: nodes.Node, bound: frozenset[str]) -> Iterator[str]:
    """Names that are read and are no loop's variable or macro's parameter there."""
    if isinstance(node, nodes.Name):
        if node.ctx == "load" and node.name not in bound:
            yield node.name
        return
    inner = bound
    if isinstance(node, nodes.For):
        inner = bound | _names(node.target) | {"loop"}
    elif isinstance(node, nodes.Macro | nodes.CallBlock):
        inner = bound.union(*(_names(each) for each in node.args))
    for child in node.iter_child_nodes():
        is_inside = child in getattr(node, "body", ()) or child is getattr(node, "test", None)
        yield from _free_names(child, inner if is_inside else bound)


def _names(node: nodes.Node) -> set[str]:
    own = [node] if isinstance(node, nodes.Name) else []
    return {name.name for name in (*own, *node.find_all(nodes.Name))}


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, str],
    *,
    ask: bool = True,
) -> str:
    """A conversation as text.

    Args:
      messages: `{"role": "user", "content": ...}`, oldest first.
      tokens: the tokenizer's special tokens by the names that templates know them by.
      ask: whether the text ends where the model is to answer.

    Raises:
      ValueError: the template is broken, or refuses this conversation.
    """
    view = rendering.View(len(messages), ask)
    (text,) = rendering.render_views(template, messages, tokens, [view])
    if isinstance(text, rendering.RenderingError):
        raise ValueError(f"the chat template does not take this conversation: {text}")
    return text
