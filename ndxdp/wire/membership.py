"""Multicast reception that lasts as long as a process does."""

from __future__ import annotations

import socket
import struct

from ndxdp.errors import NdxdpError

_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_MR_ALLMULTI = 2


def allmulti(packet_socket: socket.socket, ifindex: int) -> None:
    """Keep an interface in allmulti until the socket is closed, also by the process's death.

    The kernel counts such memberships, so that nobody else's wish is undone.
    """
    request = struct.pack("=iHH8s", ifindex, _PACKET_MR_ALLMULTI, 0, b"")
    packet_socket.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)


class Allmulti:
    """Keeps an interface in allmulti until closed; its socket receives nothing itself."""

    def __init__(self, ifindex: int) -> None:
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except PermissionError:
            raise NdxdpError(
                "this process may not open a packet socket, which keeps allmulti on",
                "run this as root, or with CAP_NET_RAW too",
            ) from None
        allmulti(self._socket, ifindex)

    def close(self) -> None:
        self._socket.close()
