"""Host routes of shares: `ADDRESS/128 dev IFACE proto ndxdp`, in the main table.

These routes are the database of learned hosts: they stay when the daemon ends, the next daemon
adopts them, and a host whose route is removed is forgotten.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ndxdp.netlink.rtnetlink import (
    HEADER,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    Rtnetlink,
    attribute,
    attributes,
    records,
)
from ndxdp.netlink.subscription import Subscription
from ndxdp.sockets.cbpf import JEQ, LD_B, LD_H, RET, assemble

PROTOCOL = 158
"""The number of `proto ndxdp` (rtm_protocol); packaging/iproute2/ndxdp.conf has the name."""

# linux/rtnetlink.h, linux/netlink.h
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTA_DST, _RTA_OIF, _RTA_TABLE, _RTA_GATEWAY = 1, 4, 15, 5
_RT_TABLE_MAIN, _RT_SCOPE_LINK, _RTN_UNICAST = 254, 253, 1
_RTMGRP_IPV6_ROUTE = 0x400
_NLM_F_EXCL = 0x200
_RTMSG = struct.Struct("=BBBBBBBBI")
_TYPE_AT, _LENGTH_AT, _PROTOCOL_AT = 4, HEADER.size + 1, HEADER.size + 5
"""Offsets of nlmsg_type, rtm_dst_len and rtm_protocol in a message."""

_BUFFER = 1 << 20  # bytes of messages that may wait
_KEPT = 65536


class HostRoute(NamedTuple):
    """A host route; address: 16 bytes."""

    address: bytes
    ifindex: int


class HostRoutes:
    """An open netlink socket that adds and removes host routes; for one thread."""

    def __init__(self) -> None:
        self._kernel = Rtnetlink()

    def close(self) -> None:
        """Close the socket; the routes stay."""
        self._kernel.close()

    def add(self, route: HostRoute) -> bool:
        """Add a route; return False if another program has a route to the address already.

        Raises:
            OSError: The kernel refused; ENODEV or ENETDOWN if the interface is absent or down.
        """
        try:
            self._ask(_RTM_NEWROUTE, NLM_F_CREATE | _NLM_F_EXCL, route)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            return route in self.read()
        return True

    def move(self, former: HostRoute, route: HostRoute) -> None:
        """Replace a route by one to the same address.

        For a moment there are both, so that a packet is never without a route.

        Raises:
            OSError: As for add().
        """
        # With NLM_F_REPLACE, the kernel would replace the first route to the address, which may be
        # another program's.
        self._ask(_RTM_NEWROUTE, NLM_F_CREATE, route)
        self.remove(former)

    def remove(self, route: HostRoute) -> bool:
        """Remove a route; return False if there is none."""
        try:
            self._ask(_RTM_DELROUTE, 0, route)
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.ENODEV):
                raise
            return False
        return True

    def remove_by(self, names: Iterable[str]) -> None:
        """Remove all host routes that leave by these interfaces, as far as they exist.

        Raises:
            OSError: The kernel refused; EPERM without CAP_NET_ADMIN.
        """
        ifindexes = set()
        for name in names:
            with contextlib.suppress(OSError):
                ifindexes.add(socket.if_nametoindex(name))
        for route in self.read():
            if route.ifindex in ifindexes:
                self.remove(route)

    def read(self) -> set[HostRoute]:
        """Return all host routes of this network namespace."""
        head = _RTMSG.pack(socket.AF_INET6, 0, 0, 0, _RT_TABLE_MAIN, PROTOCOL, 0, 0, 0)
        messages = self._kernel.ask(_RTM_GETROUTE, NLM_F_DUMP, head)
        return {route for message in messages for route in _routes_of(message)}

    def _ask(self, kind: int, flags: int, route: HostRoute) -> None:
        scope = _RT_SCOPE_LINK if kind == _RTM_NEWROUTE else 0
        head = _RTMSG.pack(
            socket.AF_INET6, 128, 0, 0, _RT_TABLE_MAIN, PROTOCOL, scope, _RTN_UNICAST, 0
        )
        body = attribute(_RTA_DST, route.address)
        body += attribute(_RTA_OIF, struct.pack("=i", route.ifindex))
        self._kernel.ask(kind, flags | NLM_F_ACK, head + body)


def read() -> set[HostRoute]:
    """Return all host routes of this network namespace."""
    with contextlib.closing(HostRoutes()) as routes:
        return routes.read()


class HostRouteMonitor(Subscription):
    """A netlink socket that reports removed routes to single addresses, of any origin.

    fileno() is readable when drain() has something to return. The kernel does not report the routes
    of an interface that was deleted or set down if net.ipv6.route.skip_notify_on_dev_down is 1.
    """

    def __init__(self) -> None:
        super().__init__(_RTMGRP_IPV6_ROUTE, _filter(_RTM_DELROUTE), buffer=_BUFFER)

    def drain(self) -> set[HostRoute] | None:
        """Return the routes that were removed since the last call; None if some were lost."""
        found: set[HostRoute] = set()
        lost = False
        for data in self._pieces():
            if data is None:
                lost = True
            else:
                found.update(_routes_in(data, _RTM_DELROUTE))
        return None if lost else found


class NewHostRouteMonitor(Subscription):
    """A netlink socket that reports new host routes of shares; lost messages are not reported.

    fileno() is readable when drain() has something to return.
    """

    def __init__(self) -> None:
        super().__init__(_RTMGRP_IPV6_ROUTE, _filter(_RTM_NEWROUTE, PROTOCOL))

    def drain(self) -> list[HostRoute]:
        """Return the routes that were added since the last call."""
        pieces = filter(None, self._pieces())
        return [route for data in pieces for route in _routes_in(data, _RTM_NEWROUTE)]


def _routes_in(data: bytes, wanted: int) -> Iterator[HostRoute]:
    """Yield the routes to single addresses in consecutive messages of a type."""
    for (_, kind, *_), message in records(data, HEADER):
        if kind == wanted:
            yield from _any_route_of(message[HEADER.size :])


def _routes_of(message: bytes) -> list[HostRoute]:
    """Return the host route of a message without its nlmsghdr; none if the route is another."""
    _, _, _, _, _, protocol, _, kind, _ = _RTMSG.unpack_from(message)
    if (protocol, kind) != (PROTOCOL, _RTN_UNICAST):
        return []
    if _RTA_GATEWAY in attributes(message[_RTMSG.size :]):
        return []
    return _any_route_of(message)


def _any_route_of(message: bytes) -> list[HostRoute]:
    """Return the route of a message if it leads one address to an interface, as any program's."""
    family, length, _, _, table, *_ = _RTMSG.unpack_from(message)
    found = attributes(message[_RTMSG.size :])
    number = struct.unpack("=I", found[_RTA_TABLE])[0] if _RTA_TABLE in found else table
    if (family, length, number) != (socket.AF_INET6, 128, _RT_TABLE_MAIN):
        return []
    if not found.keys() >= {_RTA_DST, _RTA_OIF}:
        return []
    return [HostRoute(found[_RTA_DST], struct.unpack("=i", found[_RTA_OIF])[0])]


def _filter(kind: int, protocol: int | None = None) -> bytes:
    """Return the filter that passes messages of a kind about routes to single addresses.

    BPF loads in network byte order, while netlink uses the host's.

    Args:
        kind: The message type.
        protocol: The protocol of the routes (rtm_protocol); None for any.
    """
    wanted = [(LD_H, _TYPE_AT, socket.htons(kind)), (LD_B, _LENGTH_AT, 128)]
    if protocol is not None:
        wanted.append((LD_B, _PROTOCOL_AT, protocol))
    reject = 2 * len(wanted) + 1
    code: list[tuple[int, int, int, int]] = []
    for load, at, value in wanted:
        code += [(load, 0, 0, at), (JEQ, 0, reject - len(code) - 2, value)]
    return assemble([*code, (RET, 0, 0, _KEPT), (RET, 0, 0, 0)])
