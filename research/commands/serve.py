"""Serves a run and its adapters to OpenAI's clients, for evaluation and demos.

    graft serve --run runs/quickstart/lora
    graft serve --run BASE --adapter law=DIR --adapter style=DIR --port 8000

It speaks the chat completions protocol at http://127.0.0.1:8000/v1: `model` is the name of an
adapter, or `base`. Many requests are answered in one batch (`--rows`). It is made for evaluation
and demos on one machine: in production an export is served by vLLM, llama.cpp or Ollama (`graft
convert export`). Needs `tools/setup serve`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from research.commands import model_flags
from research.config import cli
from research.runtime import terminal

PURPOSE = (
    "for evaluation and demos: in production an export is served by vLLM, llama.cpp or Ollama "
    "(graft convert export)"
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="graft serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model_flags.add(parser, "are served")
    model_flags.add_cache(parser)
    model_flags.add_mesh(parser)
    parser.add_argument(
        "--name", default="base", help="what requests call --run itself (default base)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address (default 127.0.0.1)")
    parser.add_argument(
        "--expose", action="store_true", help="allow a --host that other machines reach"
    )
    parser.add_argument("--port", type=int, default=8000, help="0: a free one (default 8000)")
    parser.add_argument(
        "--api-key",
        metavar="VARIABLE",
        help="the environment variable that holds the key which requests must carry",
    )
    parser.add_argument("--rows", type=int, default=8, help="answers at a time (default 8)")
    parser.add_argument(
        "--max-waiting",
        type=int,
        default=512,
        help="answers that may wait for a row; more requests get 429 (default 512)",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=256,
        help="of an answer at most, where a request does not say (default 256)",
    )
    parser.add_argument(
        "--window",
        type=int,
        help="tokens of a prompt and its answer at most (default: what the model was made for)",
    )
    parser.add_argument(
        "--drain-seconds",
        type=int,
        default=30,
        help="after SIGTERM or Ctrl-C, for answers that were begun (default 30)",
    )
    arguments = cli.complete(parser).parse_args(argv)
    for name, least in (("rows", 1), ("max_waiting", 0), ("tokens", 1), ("drain_seconds", 0)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    if arguments.window is not None and arguments.window < 2:
        parser.error("--window must be at least 2")
    if not 0 <= arguments.port < 2**16:
        parser.error("--port must lie in [0, 65535]")
    with cli.clear_errors():
        _serve(arguments)


def _serve(arguments: argparse.Namespace) -> None:
    api_key = _read_key(arguments.api_key)
    try:
        from research.serving import app, running
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error.name} is not there: run tools/setup serve") from None
    from research import sharding
    from research.runtime.compilation_cache import enable_compilation_cache
    from research.serving.engine import Engine
    from research.serving.models import load_models

    is_local = running.is_local(arguments.host)
    if not is_local and not arguments.expose:
        raise ValueError(
            f"--host {arguments.host}: other machines would reach it; add --expose if they are to"
        )
    # a port that is taken is said before a model is read
    listener = running.open_socket(arguments.host, arguments.port)
    enable_compilation_cache()
    mesh = model_flags.mesh_of(arguments).make()
    with sharding.mesh_context(mesh, sharding.RULES):
        models = load_models(
            arguments.run,
            arguments.adapter,
            mesh,
            base=arguments.base,
            name=arguments.name,
            tokens=arguments.tokens,
            window=arguments.window,
        )
        engine = Engine(models.model, arguments.rows, arguments.max_waiting, arguments.cache_dtype)
        hosts = app.LOCAL_HOSTS if is_local else None
        _announce(arguments, listener.getsockname()[1], list(models.by_name), is_local, api_key)
        running.run(
            engine, app.make_app(engine, models, api_key, hosts), listener, arguments.drain_seconds
        )
    terminal.show("graft serve: ended", file=sys.stderr)


def _read_key(variable: str | None) -> str | None:
    """The key of an environment variable; None where none is asked for."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise SystemExit(f"error: --api-key {variable}: there is no such environment variable")
    return key


def _announce(
    arguments: argparse.Namespace, port: int, names: list[str], is_local: bool, api_key: str | None
) -> None:
    if not is_local:
        key = "" if api_key else ", and none needs a key (--api-key)"
        terminal.show(
            f"warning: every machine that reaches {arguments.host} can ask this server{key}",
            file=sys.stderr,
        )
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    terminal.show(f"graft serve: {PURPOSE}", file=sys.stderr)
    terminal.show(
        f"graft serve: {', '.join(names)} at http://{host}:{port}/v1", file=sys.stderr, flush=True
    )
