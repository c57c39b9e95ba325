"""Writes text with a trained run: one prompt, several at once, or a conversation at the terminal.

    python -m research.generate --run runs/quickstart/pretrain --prompt "def main("
    python -m research.generate --run runs/quickstart/lora --prompt "$(cat NOTICE)"
    python -m research.generate --run DIR                  # asks for prompts until end of input
    python -m research.generate --run BASE --adapter law=DIR --adapter style=DIR --prompt "..."

A run that was tuned on prompts and completions wraps each prompt in the template that it was tuned
with; one that was tuned on conversations, and an imported model, in their chat template, in which a
conversation goes on; `--raw` leaves templates out. Text appears as it is made; several prompts are
answered in one batch and printed in order.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from research import config as door

if TYPE_CHECKING:
    from research.objectives.base import Objective
    from research.runs import Run


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
    arguments = parser.parse_args(argv)
    if arguments.tokens < 1:
        parser.error("--tokens must be at least 1")
    with door.clear_errors():
        _answer(arguments)


def _answer(arguments: argparse.Namespace) -> None:
    import numpy as np

    from research import adapters, chat, methods, runs, sharding
    from research.compilation_cache import enable_compilation_cache
    from research.generation import decode
    from research.generation.sampling import Sampling
    from research.objectives import Chat, Masked, Supervised

    enable_compilation_cache()
    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    run = runs.open_run(arguments.run, arguments.base)
    mesh, rules = sharding.MeshConfig().make(), sharding.RULES
    named = adapters.open_named(arguments.adapter, arguments.run)
    # who answers: its name, and the run whose template wraps the prompt
    voices = dict(named)
    if not named:
        voices = {name: run for name in methods.bank_names(run.method)}
    # the number by which a row says whom it asks
    numbers = {name: number for number, name in enumerate(voices)}
    off = [name for name in arguments.switch_off if name in voices]
    if voices and len(off) < len(arguments.switch_off):
        raise ValueError(f"--switch-off: the adapters side by side are {', '.join(voices)}")
    voices = {name: voice for name, voice in voices.items() if name not in off}
    if off and not voices:
        voices, numbers = {"base": run.base or run}, {"base": adapters.OFF}
    words, stops = run.tokenizer, chat.find_stops(run.companions)
    for voice in voices.values() or [run]:
        tuned = _objective(voice)
        if isinstance(tuned, Chat):
            stops += (tuned.end_id(voice.tokenizer),)
        if isinstance(tuned, Masked):
            raise ValueError(
                f"{arguments.run} was trained to fill in masked tokens: it reads both ways and "
                "does not write text. Tune it with another objective first."
            )
    said: list[dict[str, str]] = []
    with sharding.use(mesh, rules):
        if named:
            model = adapters.load_bank(named, mesh, rules)
        else:
            model = runs.load_model(run, mesh, rules)
        for name in arguments.switch_off:
            if name not in off:
                model = methods.switch_off(model, name)

        def ids(prompt: str, voice: Run = run) -> list[int]:
            data, objective = voice.experiment and voice.experiment.data, _objective(voice)
            template = None if data else chat.find_template(run.companions)
            if template is not None and not arguments.raw:
                roles = words.roles
                turns = [*said, {"role": "user", "content": prompt}]
                text = chat.render(template, turns, begin=roles["begin"], end=roles["end"])
                return words.encode(text, special=True)
            if isinstance(objective, Chat) and not arguments.raw:
                turns = [*said, {"role": "user", "content": prompt}]
                return objective.prompt_ids(voice.tokenizer, turns)
            if data and isinstance(objective, Supervised) and not arguments.raw:
                found, cut = objective.prompt_ids(words, prompt, data.sequence_length)
                if cut:
                    print(f"(cut to fit {data.sequence_length} tokens)", file=sys.stderr)
                return found
            found = [*words.opening, *words.encode(prompt)]
            if not found:
                raise ValueError("the prompt is empty, and this model has no token to begin with")
            return found

        def say(prompt: str) -> str:
            columns = decode.stream(
                model, [ids(prompt)], arguments.tokens, words.end_id, sampling, stops=stops
            )
            tokens = (int(column[0]) for column in columns)
            answer = ""
            ends = {words.end_id, *stops}
            for text in words.stream(token for token in tokens if token not in ends):
                answer += text
                print(text, end="", flush=True)
            print(flush=True)
            return answer

        def answers(prompts: Sequence[str]) -> Iterator[str]:
            """Every voice's answer to every prompt, in one batch."""
            asked = [ids(prompt, voice) for prompt in prompts for voice in voices.values() or [run]]
            rows = np.tile([numbers[name] for name in voices], len(prompts)) if voices else None
            made = decode.generate(
                model, asked, arguments.tokens, words.end_id, sampling, rows, stops=stops
            )
            yield from map(words.decode, made)

        if voices:
            while prompts := arguments.prompt or [p for p in [_ask()] if p is not None]:
                texts = answers(prompts)
                for _ in prompts:
                    for name in voices:
                        print(f"{name}: {next(texts)}", flush=True)
                if arguments.prompt:
                    break
        elif len(arguments.prompt) > 1:
            for text in answers(arguments.prompt):
                print(text)
        elif arguments.prompt:
            say(arguments.prompt[0])
        else:
            while (prompt := _ask()) is not None:
                answer = say(prompt)
                said += [
                    {"role": "user", "content": prompt},
                    {"role": "assistant", "content": answer},
                ]


def _objective(run: Run) -> Objective | None:
    """What the run was trained with; None: the model was imported."""
    from research.data.reading import make_objective

    return make_objective(run.experiment.data) if run.experiment else None


def _ask() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


if __name__ == "__main__":
    main()
