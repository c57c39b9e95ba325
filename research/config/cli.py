"""Command lines of programs that take a config: their parser, the file, overrides, and errors.

    arguments = parse(program_parser("train", __doc__))
    settings = load(TrainConfig, arguments.config, arguments.overrides)

Every field of the dataclass can be overridden, also one that the file leaves at its default.
(`ml_collections.config_flags` reaches only keys that the file wrote, and none that are None.)

This module imports no JAX, so that a program answers `--help` and a misspelt flag at once.
"""

import argparse
import ast
import contextlib
import inspect
import json
import os
import sys
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from research.config import paths
from research.config.renamed import current_path
from research.config.schema import Location, build, fields_of, to_dict, types_at
from research.config.suggestions import suggestion
from research.config.user_code import errors_with_line, load_file
from research.runtime.terminal import clean_log_lines, printable, show

T = TypeVar("T")


def load(cls: type[T], file: str, overrides: Iterable[str] = ()) -> T:
    """Loads a config file and lays command-line overrides over it.

    Args:
        cls: the dataclass that the config must fit.
        file: `path/to/config.py`, or `path/to/config.py:arg`, where `arg` goes to `get_config`.
        overrides: `a.b=value` each. A list's element is `a[0].b`. Values are JSON or Python
            literals (`3e-4`, `true`, `None`, `[1, 2]`); a field that holds text takes them as is.

    Raises:
        FileNotFoundError: there is no such file; names the nearest.
        ValueError: the file, or an override, does not fit `cls`; names the key.
    """
    content = _call_get_config(file)
    is_phased = hasattr(content, "keys") and "phases" in content
    if is_phased and "phases" not in fields_of(cls):
        raise ValueError(
            f"{file}: a run in phases, which this command does not read: graft train --dry-run "
            "checks all of them; give a config with the changes of one"
        )
    return override(build(cls, content), overrides)


def override(config: T, overrides: Iterable[str]) -> T:
    """A config with command-line overrides laid over it.

    Raises:
        ValueError: one does not fit; names the key.
    """
    cls, overrides = type(config), list(overrides)
    if not overrides:
        return config
    mapping = to_dict(config)
    for override in overrides:
        path, equals, text = override.partition("=")
        path = current_path(path, cls.__name__)
        location = paths.location(path)
        if not equals or not location:
            raise ValueError(f"--config.{override}: write it as --config.key=value")
        paths.set_at(mapping, location, _parse_value(cls, location, text), path)
    return build(cls, mapping)


def program_parser(
    name: str, description: str, *, config_required: bool = True
) -> argparse.ArgumentParser:
    """The parser of `graft NAME`, whose `--help` is the docstring followed by the flags.

    It has `--config FILE[:ARG]`; the program adds its own flags before it calls `parse`.
    """
    parser = argparse.ArgumentParser(
        prog=f"graft {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE[:ARG]",
        required=config_required,
        help="a config file with get_config(); override its keys with --config.a.b=value",
    )
    return parser


def add_distributed(parser: argparse.ArgumentParser) -> None:
    """Gives a program the flag `--distributed`, after which it calls `distributed.initialize`."""
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="this is one of several processes, as JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
        "JAX_PROCESS_ID say, or a TPU pod, GKE, Slurm or Open MPI",
    )


def complete(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Answers the shell if it asks for flags of this parser, and ends the program; else nothing.

    Returns the parser.
    """
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete  # only the shell waits for it

        argcomplete.autocomplete(parser)
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses `argv` (default: the command line); `.overrides` holds the `--config.` ones.

    A misspelt flag ends the program with exit status 2 and the nearest flag's name.
    """
    arguments, unknown = complete(parser).parse_known_args(argv)
    arguments.overrides = []
    options = [option for action in parser._actions for option in action.option_strings]
    for flag in unknown:
        name = flag.partition("=")[0]
        if flag.startswith("--config.") and "=" in flag:
            arguments.overrides.append(flag.removeprefix("--config."))
        elif flag.startswith("--config."):
            parser.error(f"{flag}: write it as {flag}=value")
        else:
            parser.error(f"unknown argument {name}{suggestion(name, options)}")
    return arguments


def on_disk(text: str) -> Path:
    """The `type` of an option of argparse for a file on a disk, not in a bucket."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is in a bucket: name a file on a disk")
    return Path(text)


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Wrong input ends a program with its message; only our own mistakes end with a traceback."""
    clean_log_lines()
    try:
        yield
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {printable(str(error))}")
    except Exception as error:
        from research.runtime import storage

        message = storage.describe_storage_error(error)
        if message is None or not storage.is_from_storage_library(error):
            raise
        sys.exit(f"error: {printable(message)}")
    except KeyboardInterrupt as interrupt:  # its message, where there is one, says what is saved
        show(str(interrupt) or "interrupted", file=sys.stderr)
        sys.exit(130)


def _parse_value(cls: type, location: Location, text: str) -> Any:
    expected = types_at(cls, location)
    if expected and all(_is_text(kind) for kind in expected):
        optional = type(None) in expected
        return None if optional and text in ("None", "null") else text
    for parse_literal in (json.loads, ast.literal_eval):
        try:
            return parse_literal(text)
        except (ValueError, SyntaxError):
            pass
    return text


def _is_text(kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return any(isinstance(choice, str) for choice in typing.get_args(kind))
    return kind in (str, type(None))


def _call_get_config(file: str) -> Any:
    name, _, argument = file.partition(":")
    path = Path(name)
    if not path.is_file():
        siblings = [str(sibling) for sibling in path.parent.glob("*.py")]
        raise FileNotFoundError(f"no config file {name}{suggestion(name, siblings)}")
    module = load_file(name)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{name}: defines no get_config()")
    if argument and not inspect.signature(module.get_config).parameters:
        raise ValueError(f"{file}: {path.name} has no variants: leave :{argument} out")
    with errors_with_line(name):
        return module.get_config(argument) if argument else module.get_config()
