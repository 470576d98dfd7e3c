"""The server's side of a container engine's HTTP API: connections, and what they request."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs


def accept(listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    """Serve each connection in a thread of its own, until the listener is closed."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(serve, connection), daemon=True).start()


def _serve(serve: Callable[[socket.socket], None], connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        serve(connection)


def read_request(connection: socket.socket) -> tuple[str, dict[str, Any]]:
    """Read the head of a request; return its path and its filters.

    Raises:
        ConnectionError: The client has closed the connection.
    """
    head = b""
    while b"\r\n\r\n" not in head:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError
        head += piece
    path, _, query = head.split()[1].decode().partition("?")
    return path, json.loads(parse_qs(query).get("filters", ["{}"])[0])
