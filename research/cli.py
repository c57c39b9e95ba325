"""`graft`: one command line for everything that Graft does.

    graft COMMAND --help      what a command does, with examples, and its flags
    graft --version

`python -m research.cli COMMAND` is the same where no console script is installed. After
`eval "$(register-python-argcomplete graft)"` the shell completes commands and flags.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

from research import __version__
from research.runtime import environment, signals

if TYPE_CHECKING:  # what `main` does not need before it hears signals
    import argparse
    from collections.abc import Sequence

# name -> its module; the first line of its docstring is its summary
COMMANDS = {
    "train": "research.commands.train",
    "sweep": "research.commands.sweep",
    "study": "research.commands.study",
    "evaluate": "research.commands.evaluate",
    "tasks": "research.commands.tasks",
    "decide": "research.commands.decide",
    "generate": "research.commands.generate",
    "serve": "research.commands.serve",
    "retrieve": "research.commands.retrieve",
    "tokenizer": "research.commands.train_tokenizer",
    "convert": "research.commands.convert",
    "adapters": "research.commands.adapters",
    "inspect": "research.commands.inspect",
    "prepare": "research.commands.prepare",
    "preflight": "research.commands.preflight",
    "launch": "research.commands.launch",
    "bench": "research.commands.bench",
}
# commands that need more than .venv: the environment on top of it (`tools/setup LAYER`)
LAYERS = {"prepare": "prepare", "preflight": "preflight", "serve": "serve"}
# set by argcomplete: the shell asks how its line, $COMP_LINE, could go on
COMPLETING = "_ARGCOMPLETE"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command with the rest of the command line."""
    if argv is None:
        argv = environment.program_arguments[:] = sys.argv[1:]
        # before all that takes time to import
        signals.end_program(" ".join(["graft", *(word for word in argv[:1] if word in COMMANDS)]))
        signals.set_ending("nothing was begun")
    argv = list(argv)
    if COMPLETING in os.environ:
        argv = _command_to_complete()
    if argv and argv[0] in COMMANDS:
        environment.reexec_if_needed(argv, _layer(argv))
        command = importlib.import_module(COMMANDS[argv[0]])
        signals.set_ending("")
        command.main(argv[1:])
        return
    parser = _parser()
    if argv and not argv[0].startswith("-"):
        from research.config.suggestions import suggestion  # the errors of all programs, alike

        parser.error(f"there is no command {argv[0]!r}{suggestion(argv[0], COMMANDS)}")
    parser.parse_args(argv)
    parser.print_help()


def _layer(argv: Sequence[str]) -> str:
    """The environment that a command line takes: a plan for chips takes the TPU compiler's, tasks
    of lm-evaluation-harness take its own."""
    flags = {word.partition("=")[0] for word in argv}
    if argv[0] in ("study", "sweep") and "--topology" in flags:
        return LAYERS["preflight"]
    if argv[0] == "evaluate" and "--lm-eval" in flags:
        return "evaluate"
    return LAYERS.get(argv[0], "")


def summary(module: str) -> str:
    """The first line of a module's docstring, read without importing the module."""
    import ast
    import importlib.util

    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        docstring = ast.get_docstring(ast.parse(file.read()))
    return (docstring or "").partition("\n")[0]


def _command_to_complete() -> list[str]:
    """The command whose flags the shell asks for; it completes them when it parses its flags.

    Where the command itself is incomplete, this completes it and ends the program.
    """
    words = os.environ["COMP_LINE"].split(maxsplit=2)
    if len(words) == 3 or (len(words) == 2 and os.environ["COMP_LINE"].endswith(" ")):
        os.environ[COMPLETING] = "2"  # the first word of the line that is the command's
        return words[1:2]
    import argcomplete

    parser = _parser()
    parser.add_argument("command", choices=COMMANDS)
    argcomplete.autocomplete(parser)
    return []


def _parser() -> argparse.ArgumentParser:
    import argparse

    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary(module)}" for name, module in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="graft",
        usage="graft COMMAND [flags]",
        description=__doc__,
        epilog="commands:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"graft {__version__}")
    return parser


if __name__ == "__main__":
    main()
