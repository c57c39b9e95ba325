"""Generates text with a trained run: one prompt, several at once, or a conversation.

    graft generate --run runs/quickstart/pretrain --prompt "def main("
    graft generate --run runs/quickstart/lora --prompt "$(cat NOTICE)"
    graft generate --run DIR                  # asks for prompts until end of input
    graft generate --run BASE --adapter law=DIR --adapter style=DIR --prompt "..."

A run that was tuned on prompts and completions wraps each prompt in the template that it was tuned
with; one that was tuned on conversations, and an imported model, in their chat template, in which a
conversation goes on; `--raw` leaves templates out. `--tools` and `--template-argument` give a chat
template what its conversations had in training; those that a run was tuned with are its defaults.
Text appears as it is made; several prompts are answered in one batch and printed in order.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.config import cli
from research.runtime import terminal

if TYPE_CHECKING:
    from research.checkpoints.runs import Run
    from research.generation.responders import Responder
    from research.generation.sampling import Sampling
    from research.text.conversation import Conversation


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="graft generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, help="a run's folder, or one of its checkpoints")
    parser.add_argument("--base", help="where a tuned run's base is, if it moved")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=RUN",
        help="an adapter of --run, which is then its base; several answer side by side",
    )
    parser.add_argument(
        "--switch-off",
        action="append",
        default=[],
        metavar="NAME",
        help="an attached adapter, or one of several that stand side by side",
    )
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
    arguments = cli.complete(parser).parse_args(argv)
    if arguments.tokens < 1:
        parser.error("--tokens must be at least 1")
    with cli.clear_errors():
        _answer(arguments)


def _answer(arguments: argparse.Namespace) -> None:
    from research import methods, sharding
    from research.adapters import banks, catalog
    from research.checkpoints import runs
    from research.generation.responders import find_responders, find_stops
    from research.generation.sampling import Sampling
    from research.runtime.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    run = runs.open_run(arguments.run, arguments.base)
    adapters = catalog.open_named(arguments.adapter, arguments.run)
    responders = find_responders(run, adapters, arguments.switch_off)
    stops = find_stops(run, responders)
    mesh, rules = sharding.MeshConfig().make(), sharding.RULES
    with sharding.mesh_context(mesh, rules):
        if adapters:
            model = banks.load_bank(adapters, mesh, rules)
        else:
            model = runs.load_model(run, mesh, rules)
        is_bank = responders[0].number is not None
        for name in [] if is_bank else arguments.switch_off:
            model = methods.switch_off(model, name)
        session = _Session(
            model=model,
            run=run,
            responders=responders,
            stops=stops,
            sampling=sampling,
            tokens=arguments.tokens,
            raw=arguments.raw,
            tools=read_tools(arguments.tools) if arguments.tools else [],
            template_arguments=read_template_arguments(arguments.template_argument),
        )
        if is_bank:
            for batch in [arguments.prompt] if arguments.prompt else ([p] for p in _read_prompts()):
                texts = session.answers(batch)
                for _ in batch:
                    for responder in responders:
                        terminal.show_answer(f"{responder.name}: {next(texts)}")
        elif len(arguments.prompt) > 1:
            for text in session.answers(arguments.prompt):
                terminal.show_answer(text)
        else:
            for prompt in arguments.prompt or _read_prompts():
                session.print_answer(prompt)


@dataclasses.dataclass(frozen=True)
class _Session:
    """A loaded model that answers, and the conversation with it."""

    model: Any
    run: Run
    responders: list[Responder]
    stops: tuple[int, ...]
    sampling: Sampling
    tokens: int
    raw: bool
    # what a chat template reads beside messages
    tools: list[Any] = dataclasses.field(default_factory=list)
    template_arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    # the messages so far
    messages: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def _conversation(self, prompt: str, before: Sequence[dict[str, str]] = ()) -> Conversation:
        from research.text.conversation import from_messages

        messages = [*before, {"role": "user", "content": prompt}]
        return from_messages(messages, self.tools, self.template_arguments)

    def print_answer(self, prompt: str) -> None:
        """Prints an answer as it is made; the next prompt continues the conversation, if the
        model has a chat template."""
        from research.generation import decode

        tokenizer = self.run.tokenizer
        conversation = self._conversation(prompt, self.messages)
        prompt_ids = [self.responders[0].prompt_ids(conversation, self.raw)]
        columns = decode.stream(
            self.model, prompt_ids, self.tokens, tokenizer.end_id, self.sampling, stops=self.stops
        )
        ends = {tokenizer.end_id, *self.stops}
        new_tokens = (int(column[0]) for column in columns)
        answer = ""
        for text in tokenizer.stream(token for token in new_tokens if token not in ends):
            answer += text
            terminal.show_answer(text, end="")
        print(flush=True)
        if self.responders[0].reads_conversations and not self.raw:
            self.messages.append({"role": "user", "content": prompt})
            self.messages.append({"role": "assistant", "content": answer})

    def answers(self, prompts: Sequence[str]) -> Iterator[str]:
        """Answers of every responder to every prompt, in one batch."""
        import numpy as np

        from research.generation import decode

        tokenizer = self.run.tokenizer
        prompt_ids = [
            responder.prompt_ids(self._conversation(prompt), self.raw)
            for prompt in prompts
            for responder in self.responders
        ]
        adapter_numbers = [
            responder.number for responder in self.responders if responder.number is not None
        ]
        row_adapters = np.tile(adapter_numbers, len(prompts)) if adapter_numbers else None
        completions = decode.generate(
            self.model,
            prompt_ids,
            self.tokens,
            tokenizer.end_id,
            self.sampling,
            row_adapters,
            stops=self.stops,
        )
        yield from map(tokenizer.decode, completions)


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
