"""Word of neighbours' entries, by netlink, as the kernel's state machine changes them."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ndxdp.netlink.fib import NudState
from ndxdp.netlink.rtnetlink import HEADER, attributes, records
from ndxdp.sockets.cbpf import JEQ, LD_B, LD_W, RET, Condition, attach_filter, program

_RTMGRP_NEIGH = 0x4

_RTM_NEWNEIGH, _RTM_DELNEIGH = 28, 29

_NDA_DST, _NDA_LLADDR = 1, 2

_KEPT = 65536  # bytes of a message

_FAMILY_AT, _IFINDEX_AT, _ATTRIBUTES_AT = 16, 20, 28  # struct ndmsg behind nlmsghdr


class NeighbourChange(NamedTuple):
    """A neighbour (16 bytes) and the state of its entry now; NONE where it was removed.

    mac: 6 bytes, None while it is not known.
    """

    ifindex: int
    address: bytes
    state: NudState
    mac: bytes | None


class NeighbourMonitor:
    """Tells of every IPv6 neighbour's entry, or of those behind some interfaces.

    fileno() is readable when drain() has news. The kernel speaks of REACHABLE, STALE, PROBE and
    FAILED, and of removal, but not of DELAY and the first INCOMPLETE.
    """

    def __init__(self, *ifindexes: int) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self.limit_to(*ifindexes)
        self._socket.bind((0, _RTMGRP_NEIGH))

    def limit_to(self, *ifindexes: int) -> None:
        """Tell of neighbours behind these interfaces alone from now on; of all if none is named.

        Those of others, which may be thousands, wake nobody.
        """
        wanted = [Condition(LD_B, _FAMILY_AT, socket.AF_INET6)]
        ending: list[tuple[int, int, int, int]] = []
        if ifindexes:
            ending.append((LD_W, 0, 0, _IFINDEX_AT))
            for ifindex in ifindexes:
                # Netlink speaks in the host's byte order, classic BPF loads in the network's.
                ending += [(JEQ, 0, 1, socket.htonl(ifindex)), (RET, 0, 0, _KEPT)]
            ending.append((RET, 0, 0, 0))
        filtering = program(wanted, last=_ATTRIBUTES_AT, keep=_KEPT, ending=ending)
        attach_filter(self._socket, filtering)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def drain(self) -> list[NeighbourChange] | None:
        """What there is; None where some was lost: look for yourself."""
        news: list[NeighbourChange] = []
        lost = False
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return None if lost else news
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            news += _changes(data)


class NeighbourWatch:
    """Tells of changes of one neighbour's entry. fileno() is readable when drain() has news."""

    def __init__(self, ifindex: int, address: bytes) -> None:
        self._address = address
        self._news = NeighbourMonitor(ifindex)

    def fileno(self) -> int:
        return self._news.fileno()

    def close(self) -> None:
        self._news.close()

    def drain(self) -> NudState | None:
        """The state of which the last message told; None without one.

        NONE where the entry was removed, or where messages were lost: look for yourself.
        """
        news = self._news.drain()
        if news is None:
            return NudState.NONE
        states = [each.state for each in news if each.address == self._address]
        return states[-1] if states else None


def _changes(data: bytes) -> Iterator[NeighbourChange]:
    for (_, kind, *_), message in records(data, HEADER):
        if kind not in (_RTM_NEWNEIGH, _RTM_DELNEIGH):
            continue
        told = attributes(message[_ATTRIBUTES_AT:])
        address = told.get(_NDA_DST)
        if address is not None:
            ifindex, number = struct.unpack_from("=iH", message, _IFINDEX_AT)
            state = NudState(number) if kind == _RTM_NEWNEIGH else NudState.NONE
            yield NeighbourChange(ifindex, address, state, told.get(_NDA_LLADDR))
