"""The kernel's neighbour table: reading and confirming one entry."""

from __future__ import annotations

import errno
import socket
from typing import NamedTuple

from ndxdp.errors import NdxdpError
from ndxdp.netlink.fib import NudState
from ndxdp.netlink.messages import NeighbourMessage, ask
from ndxdp.netlink.rtnetlink import netlink_errors

_RTM_GETNEIGH = 30
_NTF_ROUTER = 0x80
_NLM_F_REPLACE = 0x100
_RTM_NEWNEIGH = 28
_NLM_F_CREATE = 0x400


class NeighbourEntry(NamedTuple):
    """The kernel's entry for a neighbour; mac: 6 bytes, None while unknown."""

    state: NudState
    mac: bytes | None


def neighbour(ifindex: int, address: bytes) -> NeighbourEntry:
    """Return the kernel's entry for an address (16 bytes); state NONE without an entry."""
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
    """Set the entry of an address (16 bytes) to REACHABLE with a MAC (6 bytes).

    The kernel does the same for a solicited advertisement (RFC 4861 section 7.2.5). The entry then
    ages like any other.

    Raises:
        NdxdpError: The kernel refused.
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
            f"cannot write the neighbour table: {error.strerror}",
            "gateway care needs CAP_NET_ADMIN",
        ) from error
