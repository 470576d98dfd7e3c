"""Notification by netlink of new routes to single hosts that a share has learned."""

from __future__ import annotations

import errno
import socket
import struct

from ndxdp.netlink.host_routes import PROTOCOL
from ndxdp.netlink.rtnetlink import HEADER, Receiver, attributes, records
from ndxdp.sockets.cbpf import JEQ, LD_B, LD_H, RET, assemble, attach_filter

_RTMGRP_IPV6_ROUTE = 0x400
_RTM_NEWROUTE = 24
_RTA_DST, _RTA_OIF = 1, 4

_KEPT = 65536  # bytes of a message

# nlmsghdr, and struct rtmsg behind it
_TYPE_AT, _LENGTH_AT, _PROTOCOL_AT, _ATTRIBUTES_AT = 4, 17, 21, 28


class HostRouteMonitor:
    """A netlink socket that reports new host routes of shares.

    fileno() is readable when drain() has something to return.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._receive = Receiver(self._socket).receive
        attach_filter(self._socket, _filter())
        self._socket.bind((0, _RTMGRP_IPV6_ROUTE))

    def fileno(self) -> int:
        """Return the descriptor, which is readable when drain() has something to return."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def drain(self) -> list[tuple[bytes, int]]:
        """Return address (16 bytes) and interface of each route since the last call."""
        found: list[tuple[bytes, int]] = []
        while True:
            try:
                data = self._receive()
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            for _, message in records(data, HEADER):
                route = attributes(message[_ATTRIBUTES_AT:])
                if _RTA_DST in route and _RTA_OIF in route:
                    found.append((route[_RTA_DST], struct.unpack("=i", route[_RTA_OIF])[0]))


def _filter() -> bytes:
    """Return the filter that passes new routes of shares."""
    # Netlink uses the host's byte order, and classic BPF loads in network byte order.
    return assemble(
        (
            (LD_H, 0, 0, _TYPE_AT),
            (JEQ, 0, 5, socket.htons(_RTM_NEWROUTE)),
            (LD_B, 0, 0, _PROTOCOL_AT),
            (JEQ, 0, 3, PROTOCOL),
            (LD_B, 0, 0, _LENGTH_AT),
            (JEQ, 0, 1, 128),
            (RET, 0, 0, _KEPT),
            (RET, 0, 0, 0),
        )
    )
