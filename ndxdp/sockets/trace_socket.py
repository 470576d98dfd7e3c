"""Events on their way from a process that answers to the tracer: a datagram socket.

The program in the kernel has a ring buffer (Maps.events). Both carry records of abi.EVENT; a
datagram holds several, one after the other, as the kernel lets few datagrams wait.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ndxdp.kernel import abi

_SOCKET = "events"
_DATAGRAM = 64 * abi.EVENT.size  # bytes, the most that one holds
_AT_ONCE = 16  # datagrams


class EventReceiver:
    """The tracer's end, in its directory. fileno() is readable when consume() has something."""

    def __init__(self, directory: Path) -> None:
        self._socket = _socket()
        try:
            with _short(directory) as short:
                self._socket.bind(f"{short}/{_SOCKET}")
            # Who answers need not be root.
            owner = directory.parent.stat()
            for path in (directory / _SOCKET, directory):
                os.chown(path, owner.st_uid, owner.st_gid)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def consume(self) -> list[bytes]:
        """What has come since the last time, up to a thousand records."""
        records: list[bytes] = []
        size = abi.EVENT.size
        with contextlib.suppress(BlockingIOError):
            for _ in range(_AT_ONCE):
                data = self._socket.recv(_DATAGRAM)
                records += (data[at : at + size] for at in range(0, len(data) - size + 1, size))
        return records

    def close(self) -> None:
        self._socket.close()


class EventSender:
    """The end of who answers. It never waits and never raises."""

    def __init__(self, directory: Path) -> None:
        """directory: the tracer's, whether there is one or not."""
        self._directory = directory
        self._socket: socket.socket | None = None

    def send(self, records: list[bytes]) -> bool:
        """Up to 64 records of abi.EVENT; False if there was no room for them, or no tracer."""
        data = b"".join(records)
        while True:
            fresh = self._socket is None
            try:
                if self._socket is None:
                    self._socket = _socket()
                    with _short(self._directory) as short:
                        self._socket.connect(f"{short}/{_SOCKET}")
                self._socket.send(data)
                return True
            except BlockingIOError:
                return False
            except OSError:
                self.close()
                if fresh:
                    return False
                # Else it was the last tracer's: this one has another.

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _socket() -> socket.socket:
    return socket.socket(
        socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    )


@contextlib.contextmanager
def _short(directory: Path) -> Iterator[str]:
    """Another name of the directory: that of a socket has 107 bytes at most."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
