"""The server as a process: its socket, its signals, its end."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

log = logging.getLogger("segkit")

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
# Between the signal and the end, for requests that are being answered.
_GRACE_S = 30
# Clients that the system keeps waiting before they are accepted.
_BACKLOG = 2048


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; port 0 takes any free one.

    Raises:
        ValueError: the address is taken, or not one of this machine.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}: expected 1 to 65535, or 0 for a free one.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        opened = socket.socket(family, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)
    except OSError as error:
        raise ValueError(
            f"cannot listen at {host} port {port} ({error.strerror or error}). "
            "Give another --port (0 takes a free one) or --host."
        ) from None
    return opened


def address_of(opened: socket.socket) -> str:
    """`http://host:port`, as browsers take it."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(opened: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(opened.getsockname()[0].partition("%")[0]).is_loopback


def make_server(app: Starlette) -> uvicorn.Server:
    """The server of an application; `serve(sockets=[...])` runs it until `should_exit`."""
    # Its own log says what we say: errors with their traceback, through the root logger.
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=_GRACE_S, lifespan="on"
    )
    return uvicorn.Server(config)


def run(app: Starlette, opened: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then answer what has arrived and return; a second SIGINT ends at once."""
    with _signals_end_quietly():
        make_server(app).run(sockets=[opened])


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """uvicorn raises the signals that it caught once more when it is done: here that is the end that was asked for."""
    caught = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
