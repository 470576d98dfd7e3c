"""Multicast memberships of an interface, which the kernel ends when the process ends."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

from ndxdp.sockets.cbpf import packet_socket

# linux/if_packet.h
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP, _PACKET_DROP_MEMBERSHIP = 1, 2
_PACKET_MR_ALLMULTI = 2


def allmulti(opened: socket.socket, ifindex: int, *, leave: bool = False) -> None:
    """Put an interface into allmulti until a packet socket is closed.

    The kernel closes the socket when the process ends. It counts these memberships, so that ending
    one does not end those of other programs.

    Args:
        opened: The packet socket.
        ifindex: The interface.
        leave: End one membership of this socket instead.

    Raises:
        OSError: There is no such interface, or no such membership.
    """
    request = struct.pack("=iHH8s", ifindex, _PACKET_MR_ALLMULTI, 0, b"")
    option = _PACKET_DROP_MEMBERSHIP if leave else _PACKET_ADD_MEMBERSHIP
    opened.setsockopt(_SOL_PACKET, option, request)


class Allmulti:
    """A packet socket that keeps interfaces in allmulti, and receives nothing."""

    def __init__(self) -> None:
        """Open the socket.

        Raises:
            NdxdpError: The process lacks CAP_NET_RAW.
        """
        self._socket = packet_socket("keeps allmulti on")

    def close(self) -> None:
        """Close the socket, which ends its memberships."""
        self._socket.close()

    @contextlib.contextmanager
    def enabled(self, ifindex: int) -> Iterator[None]:
        """Keep an interface in allmulti during the block; blocks of one interface are counted."""
        allmulti(self._socket, ifindex)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # The interface was deleted with its memberships.
                allmulti(self._socket, ifindex, leave=True)
