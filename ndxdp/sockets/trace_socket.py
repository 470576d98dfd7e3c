"""The datagram socket by which a process in userspace mode sends trace events to the tracer.

In the other modes, the program writes events to a ring buffer (Maps.events). Both carry records of
abi.EVENT. A datagram has several records, because the kernel queues only few datagrams.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ndxdp.kernel import abi

_SOCKET = "events"
_DATAGRAM = 64 * abi.EVENT.size  # bytes, at most
_AT_ONCE = 16  # datagrams


class EventReceiver:
    """The socket that receives, in the tracer's directory."""

    def __init__(self, directory: Path) -> None:
        """Bind the socket in the tracer's directory."""
        self._socket = _socket()
        try:
            with _short(directory) as short:
                self._socket.bind(f"{short}/{_SOCKET}")
            # The process that answers may belong to another user than root.
            owner = directory.parent.stat()
            for path in (directory / _SOCKET, directory):
                os.chown(path, owner.st_uid, owner.st_gid)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor, which is readable when consume() returns records."""
        return self._socket.fileno()

    def consume(self) -> list[bytes]:
        """Return the records received since the last call, at most a thousand."""
        records: list[bytes] = []
        size = abi.EVENT.size
        with contextlib.suppress(BlockingIOError):
            for _ in range(_AT_ONCE):
                data = self._socket.recv(_DATAGRAM)
                records += (data[at : at + size] for at in range(0, len(data) - size + 1, size))
        return records

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class EventSender:
    """The socket of the process that answers. Sending never blocks and never raises."""

    def __init__(self, directory: Path) -> None:
        """Note the tracer's directory; there may be no tracer yet."""
        self._directory = directory
        self._socket: socket.socket | None = None

    def send(self, records: list[bytes]) -> bool:
        """Send up to 64 records of abi.EVENT; return False if there is no room, or no tracer."""
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
                # The socket may have been an earlier tracer's: connect again.

    def close(self) -> None:
        """Close the socket; send() opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _socket() -> socket.socket:
    return socket.socket(
        socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    )


@contextlib.contextmanager
def _short(directory: Path) -> Iterator[str]:
    """Yield a short name of a directory, because a socket's name has 107 bytes at most."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
