"""Netlink sockets that receive the kernel's notifications."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

from ndxdp.netlink.rtnetlink import Receiver
from ndxdp.sockets.cbpf import attach_filter

_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_SO_RCVBUFFORCE = 33


class Subscription:
    """A netlink socket that receives the messages of some groups, as far as a filter passes them.

    fileno() is readable when a message waits.
    """

    def __init__(self, groups: int, code: bytes, *, buffer: int = 0, more: int = 0) -> None:
        """Open the socket.

        Args:
            groups: The groups, RTMGRP_*.
            code: The filter, as assemble() returns it.
            buffer: Bytes of messages that may wait; 0 for the system's default.
            more: Another group, RTNLGRP_*, which `groups` has no bit for; 0 for none.
        """
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._receive = Receiver(self._socket).receive
        self._set_filter(code)
        if buffer:
            with contextlib.suppress(OSError):  # without CAP_NET_ADMIN the default has to do
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
        self._socket.bind((0, groups))
        if more:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, more)

    def fileno(self) -> int:
        """Return the descriptor, which is readable when a message waits."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _set_filter(self, code: bytes) -> None:
        """Replace the filter; raise OSError if the kernel has no memory for it."""
        attach_filter(self._socket, code)

    def _pieces(self) -> Iterator[bytes | None]:
        """Yield what waits: one or more messages each time; None where messages were lost."""
        while True:
            try:
                data = self._receive()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                yield None
            else:
                yield data
