"""Generates text with a trained run: one prompt, several at once, or a conversation.

    graft generate --run runs/quickstart/pretrain --prompt "def main("
    graft generate --run runs/quickstart/lora --prompt "$(cat NOTICE)"
    graft generate --run DIR                  # asks for prompts until end of input
    graft generate --run BASE --adapter law=DIR --adapter style=DIR --prompt "..."

A run that was tuned on prompts and completions wraps each prompt in the template that it was tuned
with; one that was tuned on conversations, and an imported model, in their chat template, in which a
conversation goes on; `--raw` leaves templates out. `--tools` and `--template-argument` give a chat
template what its conversations had in training; those that a run was tuned with are its defaults.
`--schema`, `--regex`, `--choices` and `--grammar` say what an answer must be, whatever the model.
Text appears as it is made; several prompts are answered in one batch and printed in order.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.commands import model_flags
from research.config import cli
from research.runtime import terminal

if TYPE_CHECKING:
    from research.generation.constraints import ConstraintConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="graft generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model_flags.add(parser, "answer")
    parser.add_argument(
        "--switch-off",
        action="append",
        default=[],
        metavar="NAME",
        help="an attached adapter, or one of several that stand side by side",
    )
    model_flags.add_cache(parser)
    model_flags.add_mesh(parser)
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument("--raw", action="store_true", help="no template, only the prompt's text")
    parser.add_argument(
        "--tools", metavar="FILE", help="JSON list of the functions that the assistant may call"
    )
    parser.add_argument(
        "--template-argument",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable of the chat template, such as enable_thinking=false",
    )
    parser.add_argument("--tokens", type=int, default=64, help="most tokens to add (default 64)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: likeliest token")
    parser.add_argument("--top-k", type=int, default=0, help="draw among the k likeliest; 0: all")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw among this share")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    constraint = parser.add_mutually_exclusive_group()
    constraint.add_argument("--schema", metavar="FILE", help="answers are JSON of this JSON Schema")
    constraint.add_argument("--regex", help="answers match this regular expression")
    constraint.add_argument("--choices", metavar="A,B", help="answers are one of these")
    constraint.add_argument("--grammar", metavar="FILE", help="answers are of this Lark grammar")
    arguments = cli.complete(parser).parse_args(argv)
    if arguments.tokens < 1:
        parser.error("--tokens must be at least 1")
    with cli.clear_errors():
        _answer(arguments)


def _answer(arguments: argparse.Namespace) -> None:
    from research.adapters import catalog
    from research.checkpoints import runs
    from research.generation.sampling import Sampling
    from research.generation.session import AnswerSettings, open_session
    from research.runtime.compilation_cache import enable_compilation_cache

    settings = AnswerSettings(
        tokens=arguments.tokens,
        sampling=Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed),
        constraint=read_constraint(arguments),
        cache_dtype=arguments.cache_dtype,
        mesh=model_flags.mesh_of(arguments),
        raw=arguments.raw,
        tools=read_tools(arguments.tools) if arguments.tools else [],
        template_arguments=read_template_arguments(arguments.template_argument),
    )
    enable_compilation_cache()
    run = runs.open_run(arguments.run, arguments.base)
    adapters = catalog.open_named(arguments.adapter, arguments.run)
    with open_session(run, settings, adapters, arguments.switch_off) as session:
        responders = session.responders
        if responders[0].number is not None:
            for batch in [arguments.prompt] if arguments.prompt else ([p] for p in _read_prompts()):
                texts = session.answers(batch)
                for _ in batch:
                    for responder in responders:
                        terminal.show_answer(f"{responder.name}: {next(texts)}")
                for _ in texts:  # what is to be said after the last one
                    pass
        elif len(arguments.prompt) > 1:
            for text in session.answers(arguments.prompt):
                terminal.show_answer(text)
        else:
            for prompt in arguments.prompt or _read_prompts():
                for text in session.continue_conversation(prompt):
                    terminal.show_answer(text, end="")
                print(flush=True)


def read_constraint(arguments: argparse.Namespace) -> ConstraintConfig | None:
    """What answers must be; ValueError where a file or setting says no such thing."""
    from research.config.schema import build
    from research.generation.constraints import AnyConstraint
    from research.generation.constraints.json_schema import read_schema

    if arguments.schema is not None:
        return read_schema(arguments.schema)
    if arguments.grammar is not None:
        try:
            text = Path(arguments.grammar).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{arguments.grammar}: no UTF-8: {error}") from None
        return build(AnyConstraint, {"kind": "lark", "grammar": text}, arguments.grammar)
    if arguments.regex is not None:
        return build(AnyConstraint, {"kind": "regex", "pattern": arguments.regex}, "--regex")
    if arguments.choices is not None:
        choices = arguments.choices.split(",")
        return build(AnyConstraint, {"kind": "choice", "choices": choices}, "--choices")
    return None


def read_tools(path: str) -> list[Any]:
    """The functions of a JSON file; ValueError where it holds no list of schemas."""
    try:
        tools = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON: {error}") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"{path}: tools must be a list of JSON schemas")
    return tools


def read_template_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` by name; a value is JSON, or else text."""
    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not name.isidentifier() or not sign:
            raise ValueError(f"--template-argument {pair}: write NAME=VALUE")
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value
    return arguments


def _read_prompts() -> Iterator[str]:
    """Prompts from the terminal, or lines of a pipe, until end of input."""
    while (prompt := _ask()) is not None:
        yield prompt


def _ask() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
