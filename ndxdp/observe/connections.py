"""Bounds the connections to a server that has a thread for each: the slowest goes first."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field
from enum import IntEnum


class Phase(IntEnum):
    """The state of a connection's thread, in the order in which connections are given up."""

    REQUEST = 0
    """It waits for the rest of the request."""
    ANSWER = 1
    """It waits for the answer to be taken."""
    WORK = 2
    """It makes the answer, and waits for nobody."""


@dataclass
class _Connection:
    phase: Phase = Phase.REQUEST
    since: float = field(default_factory=time.monotonic)
    given_up: bool = False


class Connections:
    """The connections of a server, at most `most` of them.

    Threads of those that were given up need a moment to end: there are never more than twice as
    many as `most`.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._all: dict[socket.socket, _Connection] = {}

    def admit(self, connection: socket.socket) -> bool:
        """Take a new connection in, for which another may have to go; False if none can go."""
        with self._lock:
            live = {each: told for each, told in self._all.items() if not told.given_up}
            if len(live) >= self._most and not self._give_up_slowest(live):
                return False
            if len(self._all) >= 2 * self._most:
                return False
            self._all[connection] = _Connection()
            return True

    def enter(self, connection: socket.socket, phase: Phase) -> None:
        """Note what the thread of a connection begins with now.

        Raises:
            ConnectionAbortedError: The connection was given up for another one.
        """
        with self._lock:
            told = self._all[connection]
            if told.given_up:
                raise ConnectionAbortedError
            told.phase = phase

    def remove(self, connection: socket.socket) -> None:
        """Forget a connection whose thread has ended."""
        with self._lock:
            self._all.pop(connection, None)

    def _give_up_slowest(self, live: dict[socket.socket, _Connection]) -> bool:
        """Wake the thread of the slowest connection, for which the connection is at its end."""
        waiting = [item for item in live.items() if item[1].phase is not Phase.WORK]
        if not waiting:
            return False
        connection, told = min(waiting, key=lambda item: (item[1].phase, item[1].since))
        told.given_up = True
        with contextlib.suppress(OSError):  # the far end has closed it
            connection.shutdown(socket.SHUT_RDWR)
        return True
