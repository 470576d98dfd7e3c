"""Notification by netlink of MACs that a bridge has forgotten: of ports that left, or by age."""

from __future__ import annotations

import socket
import struct

from ndxdp.netlink.rtnetlink import HEADER, attributes, records
from ndxdp.netlink.subscription import Subscription
from ndxdp.sockets.cbpf import JEQ, LD_B, LD_H, RET, assemble

_RTMGRP_NEIGH = 0x4
_RTM_DELNEIGH = 29
_AF_BRIDGE = 7
_NDA_LLADDR, _NDA_MASTER = 2, 9

_KEPT = 65536  # bytes of a message

_TYPE_AT, _FAMILY_AT, _ATTRIBUTES_AT = 4, 16, 28  # nlmsghdr, and struct ndmsg behind it


class BridgeMonitor(Subscription):
    """A netlink socket that reports the MACs that bridges forget.

    fileno() is readable when drain() has something to return. Lost messages are not reported: the
    neighbour entries of what has left fail by and by.
    """

    def __init__(self) -> None:
        super().__init__(_RTMGRP_NEIGH, _filter())

    def drain(self) -> set[tuple[int, bytes]]:
        """Return bridge and MAC (6 bytes) of what was forgotten since the last call."""
        found: set[tuple[int, bytes]] = set()
        for data in filter(None, self._pieces()):
            for _, message in records(data, HEADER):
                entry = attributes(message[_ATTRIBUTES_AT:])
                mac, bridge = entry.get(_NDA_LLADDR), entry.get(_NDA_MASTER)
                if mac and bridge:
                    found.add((struct.unpack("=I", bridge)[0], mac))
        return found


def _filter() -> bytes:
    """Return the filter that passes removed entries of bridges."""
    # Netlink uses the host's byte order, and classic BPF loads in network byte order.
    return assemble(
        (
            (LD_H, 0, 0, _TYPE_AT),
            (JEQ, 0, 3, socket.htons(_RTM_DELNEIGH)),
            (LD_B, 0, 0, _FAMILY_AT),
            (JEQ, 0, 1, _AF_BRIDGE),
            (RET, 0, 0, _KEPT),
            (RET, 0, 0, 0),
        )
    )
