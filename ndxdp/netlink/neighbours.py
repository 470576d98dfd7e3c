"""Entries of the kernel's neighbour table."""

from __future__ import annotations

import errno
import socket
from typing import NamedTuple

from ndxdp.errors import NdxdpError
from ndxdp.netlink.fib import NudState
from ndxdp.netlink.messages import NeighbourMessage, ask, netlink_errors

_RTM_GETNEIGH = 30
_NTF_ROUTER = 0x80
_NLM_F_REPLACE = 0x100
_RTM_NEWNEIGH = 28
_NLM_F_CREATE = 0x400


class NeighbourEntry(NamedTuple):
    """The kernel's entry for a neighbour. mac: 6 bytes, None while it is not known."""

    state: NudState
    mac: bytes | None


def neighbour(ifindex: int, address: bytes) -> NeighbourEntry:
    """What the kernel knows of a neighbour (16 bytes)."""
    with netlink_errors():
        try:
            (found,) = ask(
                _RTM_GETNEIGH,
                0,
                NeighbourMessage,
                [("NDA_DST", address)],
                family=socket.AF_INET6,
                ifindex=ifindex,
            )
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
            return NeighbourEntry(NudState.NONE, None)
    mac = found.get_attr("NDA_LLADDR")
    return NeighbourEntry(NudState(found["state"]), bytes(mac) if mac else None)


def confirm_neighbour(ifindex: int, address: bytes, mac: bytes, *, router: bool) -> None:
    """Enter a neighbour as reachable, as the kernel does when it hears a solicited answer.

    Its MAC (6 bytes) takes the place of another one; the state ages like any other.
    """
    try:
        ask(
            _RTM_NEWNEIGH,
            _NLM_F_CREATE | _NLM_F_REPLACE,
            NeighbourMessage,
            [("NDA_DST", address), ("NDA_LLADDR", mac)],
            family=socket.AF_INET6,
            ifindex=ifindex,
            state=int(NudState.REACHABLE),
            flags=_NTF_ROUTER if router else 0,
        )
    except OSError as error:
        raise NdxdpError(
            f"the neighbour table could not be written ({error.strerror})",
            "gateway care needs CAP_NET_ADMIN",
        ) from error
