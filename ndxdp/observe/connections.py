"""Limit on the connections of a server with one thread each: the slowest is closed first."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field
from enum import IntEnum


class Phase(IntEnum):
    """State of a connection's thread, in the order in which connections are closed."""

    REQUEST = 0
    """The thread waits for the rest of the request."""
    ANSWER = 1
    """The thread waits until the client has received the answer."""
    WORK = 2
    """The thread prepares the answer, and waits for no client."""


@dataclass
class _Connection:
    phase: Phase = Phase.REQUEST
    since: float = field(default_factory=time.monotonic)
    closed: bool = False


class Connections:
    """Connections of a server, at most `most` of them.

    The threads of closed connections need a moment to end: there are never more than 2 * most
    threads.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._all: dict[socket.socket, _Connection] = {}

    def admit(self, connection: socket.socket) -> bool:
        """Accept a new connection, and close the slowest one if there are too many.

        Returns:
            False if the new connection is refused, because no other one can be closed.
        """
        with self._lock:
            live = {each: state for each, state in self._all.items() if not state.closed}
            if len(live) >= self._most and not self._close_slowest(live):
                return False
            if len(self._all) >= 2 * self._most:
                return False
            self._all[connection] = _Connection()
            return True

    def enter(self, connection: socket.socket, phase: Phase) -> None:
        """Note the phase that the thread of a connection begins.

        Raises:
            ConnectionAbortedError: The connection was closed in favour of another one.
        """
        with self._lock:
            state = self._all[connection]
            if state.closed:
                raise ConnectionAbortedError
            state.phase = phase

    def remove(self, connection: socket.socket) -> None:
        """Remove a connection whose thread has ended."""
        with self._lock:
            self._all.pop(connection, None)

    def _close_slowest(self, live: dict[socket.socket, _Connection]) -> bool:
        """Shut down the slowest connection, which wakes its thread; False if all threads work."""
        waiting = [item for item in live.items() if item[1].phase is not Phase.WORK]
        if not waiting:
            return False
        connection, state = min(waiting, key=lambda item: (item[1].phase, item[1].since))
        state.closed = True
        with contextlib.suppress(OSError):  # the client has closed the connection
            connection.shutdown(socket.SHUT_RDWR)
        return True
