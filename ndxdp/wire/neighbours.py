"""Word of one neighbour's entry, by netlink, as the kernel's state machine changes it."""

from __future__ import annotations

import errno
import socket
import struct

from ndxdp.wire.netlink import NudState
from ndxdp.wire.raw import LD_B, LD_W, Condition, attach_filter, program

_RTMGRP_NEIGH = 0x4
_RTM_NEWNEIGH, _RTM_DELNEIGH = 28, 29
_NDA_DST = 1
_FAMILY_AT, _IFINDEX_AT, _STATE_AT, _ATTRIBUTES_AT = 16, 20, 24, 28  # struct ndmsg behind nlmsghdr


class NeighbourWatch:
    """Tells of changes of one neighbour's entry. fileno() is readable when drain() has news.

    The kernel speaks of REACHABLE, STALE, PROBE and FAILED, and of removal, but not of DELAY and
    the first INCOMPLETE. Other interfaces' neighbours, which may be thousands, do not wake us.
    """

    def __init__(self, ifindex: int, address: bytes) -> None:
        self._address = address
        self._ifindex = ifindex
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        # Netlink speaks in the host's byte order, classic BPF loads in the network's.
        (ifindex_as_loaded,) = struct.unpack("!I", struct.pack("=I", ifindex))
        ours = (
            Condition(LD_B, _FAMILY_AT, socket.AF_INET6),
            Condition(LD_W, _IFINDEX_AT, ifindex_as_loaded),
        )
        attach_filter(self._socket, program(ours, last=_ATTRIBUTES_AT, keep=65536))
        self._socket.bind((0, _RTMGRP_NEIGH))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def drain(self) -> NudState | None:
        """The state of which the last message told; None without one.

        NONE where the entry was removed, or where messages were lost: look for yourself.
        """
        state: NudState | None = None
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return state
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                state = NudState.NONE
                continue
            state = self._latest(data, state)

    def _latest(self, data: bytes, state: NudState | None) -> NudState | None:
        at = 0
        while at + _ATTRIBUTES_AT <= len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            message = data[at : at + length]
            if kind in (_RTM_NEWNEIGH, _RTM_DELNEIGH) and self._concerns(message):
                (number,) = struct.unpack_from("=H", message, _STATE_AT)
                state = NudState(number) if kind == _RTM_NEWNEIGH else NudState.NONE
            at += max((length + 3) & ~3, 16)
        return state

    def _concerns(self, message: bytes) -> bool:
        if struct.unpack_from("=i", message, _IFINDEX_AT)[0] != self._ifindex:
            return False
        at = _ATTRIBUTES_AT
        while at + 4 <= len(message):
            length, kind = struct.unpack_from("=HH", message, at)
            if kind == _NDA_DST:
                return message[at + 4 : at + length] == self._address
            at += max((length + 3) & ~3, 4)
        return False
