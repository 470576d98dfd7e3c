"""Word of neighbours' entries, by netlink, as the kernel's state machine changes them."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ndxdp.wire.fib import NudState, attributes
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
        for news in _messages(data):
            if (news.ifindex, news.address) == (self._ifindex, self._address):
                state = news.state
        return state


class News(NamedTuple):
    """A neighbour (16 bytes) and the state of its entry now; NONE where it was removed."""

    ifindex: int
    address: bytes
    state: NudState


class NeighbourNews:
    """Tells of every IPv6 neighbour's entry. fileno() is readable when drain() has news."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        of_ipv6 = (Condition(LD_B, _FAMILY_AT, socket.AF_INET6),)
        attach_filter(self._socket, program(of_ipv6, last=_ATTRIBUTES_AT, keep=65536))
        self._socket.bind((0, _RTMGRP_NEIGH))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def drain(self) -> list[News] | None:
        """What there is; None where some was lost: look for yourself."""
        news: list[News] = []
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
            news += _messages(data)


def _messages(data: bytes) -> Iterator[News]:
    at = 0
    while at + _ATTRIBUTES_AT <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        message = data[at : at + length]
        at += max((length + 3) & ~3, 16)
        address = attributes(message[_ATTRIBUTES_AT:]).get(_NDA_DST)
        if kind in (_RTM_NEWNEIGH, _RTM_DELNEIGH) and address is not None:
            ifindex, number = struct.unpack_from("=iH", message, _IFINDEX_AT)
            state = NudState(number) if kind == _RTM_NEWNEIGH else NudState.NONE
            yield News(ifindex, address, state)
