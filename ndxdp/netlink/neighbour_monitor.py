"""Notification of changes in the kernel's neighbour table by netlink."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterator
from typing import NamedTuple

from ndxdp.netlink.fib import NudState
from ndxdp.netlink.rtnetlink import HEADER, attributes, records
from ndxdp.netlink.subscription import Subscription
from ndxdp.sockets.cbpf import JEQ, LD_B, LD_W, NOTHING, RET, assemble

_RTMGRP_NEIGH = 0x4

_RTM_NEWNEIGH, _RTM_DELNEIGH = 28, 29

_NDA_DST, _NDA_LLADDR = 1, 2

_KEPT = 65536  # bytes of a message

_FILTERED = 1000
"""The most interfaces that a filter names: it may have 4096 instructions."""

_FAMILY_AT, _IFINDEX_AT, _ATTRIBUTES_AT = 16, 20, 28  # struct ndmsg behind nlmsghdr


class NeighbourChange(NamedTuple):
    """A change of a neighbour's entry.

    Attributes:
        ifindex: The interface.
        address: The neighbour's address, 16 bytes.
        state: The new state; NONE for an entry that was removed.
        mac: 6 bytes; None while unknown.
    """

    ifindex: int
    address: bytes
    state: NudState
    mac: bytes | None


class NeighbourMonitor(Subscription):
    """A netlink socket that reports changes of IPv6 neighbours.

    fileno() is readable when drain() has changes. The kernel reports the states REACHABLE, STALE,
    PROBE and FAILED and removal, but not DELAY and the first INCOMPLETE.
    """

    def __init__(self, *ifindexes: int, buffer: int = 0) -> None:
        """Open the socket.

        Args:
            ifindexes: As for limit_to().
            buffer: Bytes of messages that may wait; 0 for the system's default.
        """
        super().__init__(_RTMGRP_NEIGH, NOTHING, buffer=buffer)
        self.limit_to(*ifindexes)

    def limit_to(self, *ifindexes: int) -> None:
        """Report only neighbours on these interfaces from now on; without any, report all.

        The socket filter keeps changes of other neighbours, which may be thousands, from waking the
        process. Where the interfaces are too many for a filter, all neighbours are reported.
        """
        try:
            self._set_filter(_filter(ifindexes if len(ifindexes) <= _FILTERED else ()))
        except OSError as error:
            if error.errno != errno.ENOMEM:  # net.core.optmem_max
                raise
            self._set_filter(_filter(()))

    def drain(self) -> list[NeighbourChange] | None:
        """Return the changes since the last call; None if changes were lost."""
        changes: list[NeighbourChange] = []
        lost = False
        for data in self._pieces():
            if data is None:
                lost = True
            else:
                changes += _changes(data)
        return None if lost else changes


class NeighbourWatch:
    """A monitor of one neighbour's entry; fileno() is readable when drain() has a change."""

    def __init__(self, ifindex: int, address: bytes) -> None:
        self._address = address
        self._monitor = NeighbourMonitor(ifindex)

    def fileno(self) -> int:
        """Return the descriptor, which is readable when drain() has a change."""
        return self._monitor.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._monitor.close()

    def drain(self) -> NudState | None:
        """Return the latest state; None without a change.

        The state is NONE if the entry was removed, or if messages were lost: read the entry then.
        """
        changes = self._monitor.drain()
        if changes is None:
            return NudState.NONE
        states = [each.state for each in changes if each.address == self._address]
        return states[-1] if states else None


def _filter(ifindexes: Collection[int]) -> bytes:
    """Return the filter that passes IPv6 neighbours on these interfaces; without any, on all."""
    code = [(LD_B, 0, 0, _ATTRIBUTES_AT), (LD_B, 0, 0, _FAMILY_AT)]
    code += [(JEQ, 1, 0, socket.AF_INET6), (RET, 0, 0, 0)]
    if ifindexes:
        code.append((LD_W, 0, 0, _IFINDEX_AT))
        for ifindex in ifindexes:
            # Netlink uses the host's byte order, and classic BPF loads in network byte order.
            code += [(JEQ, 0, 1, socket.htonl(ifindex)), (RET, 0, 0, _KEPT)]
    return assemble([*code, (RET, 0, 0, 0 if ifindexes else _KEPT)])


def _changes(data: bytes) -> Iterator[NeighbourChange]:
    for (_, kind, *_), message in records(data, HEADER):
        if kind not in (_RTM_NEWNEIGH, _RTM_DELNEIGH):
            continue
        found = attributes(message[_ATTRIBUTES_AT:])
        address = found.get(_NDA_DST)
        if address is not None:
            ifindex, number = struct.unpack_from("=iH", message, _IFINDEX_AT)
            state = NudState(number) if kind == _RTM_NEWNEIGH else NudState.NONE
            yield NeighbourChange(ifindex, address, state, found.get(_NDA_LLADDR))
