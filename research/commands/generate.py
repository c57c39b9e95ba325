"""Writes text with a trained run: one prompt, several at once, or a conversation at the terminal.

    graft generate --run runs/quickstart/pretrain --prompt "def main("
    graft generate --run runs/quickstart/lora --prompt "$(cat NOTICE)"
    graft generate --run DIR                  # asks for prompts until end of input
    graft generate --run BASE --adapter law=DIR --adapter style=DIR --prompt "..."

A run that was tuned on prompts and completions wraps each prompt in the template that it was tuned
with; one that was tuned on conversations, and an imported model, in their chat template, in which a
conversation goes on; `--raw` leaves templates out. Text appears as it is made; several prompts are
answered in one batch and printed in order.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from research.config import cli

if TYPE_CHECKING:
    from research.checkpoints.runs import Run
    from research.generation.prompts import Responder
    from research.generation.sampling import Sampling


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
    from research.generation import prompts
    from research.generation.sampling import Sampling
    from research.runtime.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    run = runs.open_run(arguments.run, arguments.base)
    named = catalog.open_named(arguments.adapter, arguments.run)
    voices = prompts.find_voices(run, named, arguments.switch_off)
    stops = prompts.find_stops(run, voices)
    mesh, rules = sharding.MeshConfig().make(), sharding.RULES
    with sharding.mesh_context(mesh, rules):
        if named:
            model = banks.load_bank(named, mesh, rules)
        else:
            model = runs.load_model(run, mesh, rules)
        bank = voices[0].number is not None
        for name in [] if bank else arguments.switch_off:
            model = methods.switch_off(model, name)
        writer = _Writer(model, run, voices, stops, sampling, arguments.tokens, arguments.raw)
        given = arguments.prompt
        if bank:
            while asked := given or [prompt for prompt in [_ask()] if prompt is not None]:
                texts = writer.answers(asked)
                for _ in asked:
                    for voice in voices:
                        print(f"{voice.name}: {next(texts)}", flush=True)
                if given:
                    break
        elif len(given) > 1:
            for text in writer.answers(given):
                print(text)
        elif given:
            writer.say(given[0])
        else:
            while (prompt := _ask()) is not None:
                writer.say(prompt)


@dataclasses.dataclass(frozen=True)
class _Writer:
    """A loaded model that answers."""

    model: Any
    run: Run
    voices: list[Responder]
    stops: tuple[int, ...]
    sampling: Sampling
    tokens: int
    raw: bool
    # the conversation so far
    said: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def say(self, prompt: str) -> None:
        """Prints an answer as it is made; what is said next goes on from it."""
        from research.generation import decode

        words = self.run.tokenizer
        asked = [self.voices[0].ids(prompt, self.said, self.raw)]
        columns = decode.stream(
            self.model, asked, self.tokens, words.end_id, self.sampling, stops=self.stops
        )
        ends = {words.end_id, *self.stops}
        made = (int(column[0]) for column in columns)
        answer = ""
        for text in words.stream(token for token in made if token not in ends):
            answer += text
            print(text, end="", flush=True)
        print(flush=True)
        self.said.append({"role": "user", "content": prompt})
        self.said.append({"role": "assistant", "content": answer})

    def answers(self, prompts: Sequence[str]) -> Iterator[str]:
        """Every voice's answer to every prompt, in one batch."""
        import numpy as np

        from research.generation import decode

        words = self.run.tokenizer
        asked = [voice.ids(prompt, raw=self.raw) for prompt in prompts for voice in self.voices]
        numbers = [voice.number for voice in self.voices if voice.number is not None]
        rows = np.tile(numbers, len(prompts)) if numbers else None
        made = decode.generate(
            self.model, asked, self.tokens, words.end_id, self.sampling, rows, stops=self.stops
        )
        yield from map(words.decode, made)


def _ask() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
