"""Parked descriptors: files that stay open without a place in this process's table of descriptors.

The number of descriptors of a process is limited (RLIMIT_NOFILE). A message that carries
descriptors (SCM_RIGHTS, unix(7)) and waits in the queue of a socket keeps their files open. To read
the message with MSG_PEEK opens them again, and leaves the message in the queue. The kernel closes
the files with the socket, also when the process is killed.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping


class Parked:
    """Parked descriptors by name; close() when done. All threads may use them."""

    def __init__(self, fds: Mapping[str, int]) -> None:
        """Park open descriptors.

        Raises:
            OSError: The kernel refuses (ETOOMANYREFS), and the descriptors stay as they are.
        """
        self._names = tuple(fds)
        self._lock = threading.Lock()
        self._users = 0
        self._open: dict[str, int] = {}
        self._socket = _sent(fds.values())
        _close(fds.values())

    def add(self, name: str, fd: int) -> None:
        """Park one more open descriptor.

        Raises:
            OSError: The kernel refuses, and the descriptor stays as it is.
        """
        with self.opened() as fds, self._lock:
            present = {**fds, name: fd}
            former, self._socket = self._socket, _sent(present.values())
            former.close()
            self._names = tuple(present)
            self._open[name] = fd  # the last user closes it

    @contextlib.contextmanager
    def opened(self) -> Iterator[Mapping[str, int]]:
        """Open the descriptors during the block, of which several may run at the same time.

        Raises:
            OSError: The process has no room for them (EMFILE).
        """
        with self._lock:
            if not self._users:
                self._open = self._receive()
            self._users += 1
        try:
            yield self._open
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    _close(self._open.values())
                    self._open = {}

    def close(self) -> None:
        """Close the files; no block runs any more."""
        self._socket.close()

    def _receive(self) -> dict[str, int]:
        # socket.recv_fds() ignores flags.
        item = array.array("i").itemsize
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        space = socket.CMSG_SPACE(len(self._names) * item)
        _, messages, _, _ = self._socket.recvmsg(1, space, flags)
        found = array.array("i")
        for _, _, data in messages:
            found.frombytes(data[: len(data) - len(data) % item])
        if len(found) < len(self._names):
            _close(found)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return dict(zip(self._names, found, strict=True))


def _sent(fds: Iterable[int]) -> socket.socket:
    """Return a socket in whose queue a message with open descriptors waits."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        with sender:
            socket.send_fds(sender, [b"\0"], list(fds))
    except BaseException:
        receiver.close()
        raise
    return receiver


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
