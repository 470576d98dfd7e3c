"""Host routes of shares: `ADDRESS/128 dev IFACE proto ndxdp`, in the main table.

These routes are the database of learned hosts: they stay when the daemon ends, the next daemon
adopts them, and a host whose route is removed is forgotten.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from ndxdp.netlink.rtnetlink import (
    HEADER,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    Receiver,
    Rtnetlink,
    attribute,
    attributes,
    records,
)
from ndxdp.sockets.cbpf import JEQ, LD_B, LD_H, RET, assemble, attach_filter

PROTOCOL = 158
"""The number of `proto ndxdp` (rtm_protocol); packaging/iproute2/ndxdp.conf has the name."""

# linux/rtnetlink.h, linux/netlink.h
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTA_DST, _RTA_OIF, _RTA_TABLE, _RTA_GATEWAY = 1, 4, 15, 5
_RT_TABLE_MAIN, _RT_SCOPE_LINK, _RTN_UNICAST = 254, 253, 1
_RTMGRP_IPV6_ROUTE = 0x400
_NLM_F_REPLACE, _NLM_F_EXCL = 0x100, 0x200
_RTMSG = struct.Struct("=BBBBBBBBI")
_LENGTH_AT = HEADER.size + 1  # of rtm_dst_len in a message
_SO_RCVBUFFORCE = 33
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

    def move(self, former: HostRoute, route: HostRoute) -> bool:
        """Replace a route by one to the same address; return as add().

        For a moment there are both, so that a packet is never without a route.

        Raises:
            OSError: As for add().
        """
        # With NLM_F_REPLACE, the kernel would replace the first route to the address, which may be
        # another program's.
        self._ask(_RTM_NEWROUTE, NLM_F_CREATE, route)
        self.remove(former)
        return True

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


def remove(route: HostRoute) -> bool:
    """Remove a host route; return False if there is none.

    Raises:
        OSError: The kernel refused; EPERM without CAP_NET_ADMIN.
    """
    with contextlib.closing(HostRoutes()) as routes:
        return routes.remove(route)


class HostRouteMonitor:
    """A netlink socket that reports removed routes to single addresses, whoever had added them.

    fileno() is readable when drain() has something to return. The kernel does not report the routes
    of an interface that was deleted or set down if net.ipv6.route.skip_notify_on_dev_down is 1.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._receive = Receiver(self._socket).receive
        attach_filter(self._socket, _removals())
        with contextlib.suppress(OSError):  # without CAP_NET_ADMIN the default has to do
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._socket.bind((0, _RTMGRP_IPV6_ROUTE))

    def fileno(self) -> int:
        """Return the descriptor, which is readable when drain() has something to return."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def drain(self) -> set[HostRoute] | None:
        """Return the routes that were removed since the last call; None if some were lost."""
        found: set[HostRoute] = set()
        lost = False
        while True:
            try:
                data = self._receive()
            except BlockingIOError:
                return None if lost else found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            for (_, kind, *_), message in records(data, HEADER):
                if kind == _RTM_DELROUTE:
                    found.update(_any_route_of(message[HEADER.size :]))


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


def _removals() -> bytes:
    """Return the filter that passes removals of routes to single addresses, and nothing else.

    BPF loads in network byte order, while netlink uses the host's.
    """
    return assemble(
        (
            (LD_H, 0, 0, 4),  # nlmsg_type
            (JEQ, 0, 3, socket.htons(_RTM_DELROUTE)),
            (LD_B, 0, 0, _LENGTH_AT),
            (JEQ, 0, 1, 128),
            (RET, 0, 0, _KEPT),
            (RET, 0, 0, 0),
        )
    )
