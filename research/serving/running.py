"""A server that runs: HTTP in a thread of its own, the engine in this one, until a signal."""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from typing import Any

import uvicorn

from research.runtime import signals
from research.serving.engine import Engine

log = logging.getLogger(__name__)


def is_local(host: str) -> bool:
    """Whether only programs of this machine reach an address."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.version == 4 and address.is_loopback


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that waits for connections; port 0 takes a free one.

    Raises:
      OSError: the address is taken or none of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"{host}:{port}: {error.strerror or error}; --port takes another") from None


def run(engine: Engine, app: Any, listener: socket.socket, drain_seconds: int = 30) -> None:
    """Answers requests until SIGINT or SIGTERM, then what was begun, and returns.

    It runs the engine in this thread, in which JAX was used before.

    Args:
      app: of ASGI.
      drain_seconds: what is then not answered within them is cut off; a second signal ends at once.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=drain_seconds,
        lifespan="off",
    )
    server = uvicorn.Server(config)

    def stop() -> None:
        server.should_exit = True

    def answer() -> None:
        try:
            server.run(sockets=[listener])
        finally:
            engine.close()

    thread = threading.Thread(target=answer, name="http", daemon=True)
    with signals.collect(signals.StopRequest(forward=stop)):
        thread.start()
        try:
            engine.run()
        finally:
            stop()
            thread.join(drain_seconds + 5)
