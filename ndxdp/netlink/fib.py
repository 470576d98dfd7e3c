"""Queries of the kernel's routes (FIB) and neighbour tables.

The messages are built without pyroute2, which takes ten times as long for a message.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

from ndxdp.ndp.address import is_link_local
from ndxdp.netlink.rtnetlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    Rtnetlink,
    attribute,
    attributes,
    records,
)
from ndxdp.rules.prefix import Prefix

# linux/rtnetlink.h, linux/neighbour.h
_RTM_GETROUTE = 26

_RTM_NEWNEIGH, _RTM_DELNEIGH, _RTM_GETNEIGH = 28, 29, 30

_RTM_F_FIB_MATCH = 0x2000

_RTA_DST, _RTA_IIF, _RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH = 1, 3, 4, 5, 9

_RTA_CACHEINFO, _RTA_TABLE, _RTA_ENCAP_TYPE = 12, 15, 21

_RTPROT_RA = 9

_NDA_DST, _NDA_LLADDR, _NDA_IFINDEX = 1, 2, 8

_NTF_USE = 0x01

_TABLE_MAIN, _TABLE_LOCAL = 254, 255

_RTMSG = struct.Struct("=BBBBBBBBI")

_NDMSG = struct.Struct("=BBHiHBB")

_NEXT_HOP = struct.Struct("=HBBi")  # struct rtnexthop


class NudState(IntEnum):
    """The state of a neighbour's entry (linux/neighbour.h); NONE also without an entry."""

    NONE = 0x00
    INCOMPLETE = 0x01
    REACHABLE = 0x02
    STALE = 0x04
    DELAY = 0x08
    PROBE = 0x10
    FAILED = 0x20
    NOARP = 0x40
    PERMANENT = 0x80

    @property
    def is_valid(self) -> bool:
        """True if the kernel sends packets to such a neighbour (NUD_VALID)."""
        return self not in (NudState.NONE, NudState.INCOMPLETE, NudState.FAILED)


class RouteType(IntEnum):
    """The type of a route (RTN_*, linux/rtnetlink.h); NONE without a route."""

    NONE = 0
    UNICAST = 1
    LOCAL = 2
    BROADCAST = 3
    ANYCAST = 4
    MULTICAST = 5
    BLACKHOLE = 6
    UNREACHABLE = 7
    PROHIBIT = 8


class Route(NamedTuple):
    """The route of a packet.

    Attributes:
        type: The type.
        ifindex: The interface by which the packet leaves; 0 without one.
        gateway: The gateway, 16 bytes; None if the destination is on-link.
        encap: True if the packet goes into a lightweight tunnel.
        prefix: The destination itself, or the prefix of the route in the table if route() was
            called with `matched`.
        table: The number of the routing table.
    """

    type: RouteType
    ifindex: int = 0
    gateway: bytes | None = None
    encap: bool = False
    prefix: Prefix | None = None
    table: int = 0


class Neighbour(NamedTuple):
    """The kernel's entry for an address (16 bytes); mac: 6 bytes, None while unknown."""

    address: bytes
    state: NudState
    mac: bytes | None


class DefaultRoute(NamedTuple):
    """A next hop of a default route in the main table.

    Attributes:
        ifindex: The interface.
        gateway: The gateway, 16 bytes; None if all destinations are on-link.
        by_ra: True if the route comes from a router advertisement, added by the kernel or a daemon.
        expires: Seconds until the route expires; None for never.
        has_expired: True if the route has expired; the kernel lists it until garbage collection.
    """

    ifindex: int
    gateway: bytes | None
    by_ra: bool
    expires: int | None
    has_expired: bool = False


_OF_ERRNO = {
    errno.EINVAL: RouteType.BLACKHOLE,
    errno.EHOSTUNREACH: RouteType.UNREACHABLE,
    errno.EACCES: RouteType.PROHIBIT,
    errno.ENETUNREACH: RouteType.NONE,
    errno.EAGAIN: RouteType.NONE,  # a `throw` route and no other
}

_TYPES = {each.value: each for each in RouteType}  # not THROW, NAT, XRESOLVE


class Fib:
    """An open netlink socket for use by one thread; close() it after use."""

    def __init__(self) -> None:
        self._kernel = Rtnetlink()
        self._forwarding = 0, -1  # an interface and the descriptor of its sysctl

    def __enter__(self) -> Fib:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket and the sysctl."""
        self._kernel.close()
        self._close_sysctl()

    def route(self, target: bytes, ifindex: int, *, matched: bool = False) -> Route:
        """Return the route of a packet that arrives on an interface.

        Args:
            target: The packet's destination, 16 bytes. Its source is ::.
            ifindex: The interface.
            matched: True for the route as in the table, with its prefix, instead of the path.
        """
        if is_link_local(target):
            return Route(RouteType.NONE)  # never forwarded (RFC 4291 2.5.6)
        flags = _RTM_F_FIB_MATCH if matched else 0
        body = _RTMSG.pack(socket.AF_INET6, 128, 0, 0, 0, 0, 0, 0, flags)
        body += attribute(_RTA_DST, target) + attribute(_RTA_IIF, struct.pack("=i", ifindex))
        try:
            (message,) = self._kernel.ask(_RTM_GETROUTE, 0, body)
        except OSError as error:
            if error.errno not in _OF_ERRNO:
                raise
            return Route(_OF_ERRNO[error.errno])
        return _route_of(message)

    def local_prefixes(self) -> set[Prefix]:
        """Return the prefixes that this host receives: own and anycast addresses, local routes.

        Link-local addresses are left out, because packets for them are never forwarded.
        """
        body = _RTMSG.pack(socket.AF_INET6, 0, 0, 0, _TABLE_LOCAL, 0, 0, 0, 0)
        found = set()
        for message in self._kernel.ask(_RTM_GETROUTE, NLM_F_DUMP, body):
            route = _route_of(message)
            if (
                route.prefix
                and route.type in (RouteType.LOCAL, RouteType.ANYCAST)
                and not is_link_local(route.prefix.address)
            ):
                found.add(route.prefix)
        return found

    def gateways(self, ifindex: int) -> set[bytes]:
        """Return the gateways (16 bytes) of default routes on an interface, in all tables.

        For a dump the kernel searches its tables once. For /proc/net/ipv6_route the kernel starts
        again every 4 KB, which takes 4 minutes with 200 000 routes.
        """
        return gateways_among(self.routes_by(ifindex), ifindex)

    def routes_by(self, ifindex: int) -> list[bytes]:
        """Return the IPv6 routes by an interface, of all tables: struct rtmsg and attributes.

        The kernel goes through all routes for that.
        """
        body = _RTMSG.pack(socket.AF_INET6, 0, 0, 0, 0, 0, 0, 0, 0)
        body += attribute(_RTA_OIF, struct.pack("=i", ifindex))
        try:
            found = self._kernel.ask(_RTM_GETROUTE, NLM_F_DUMP, body)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return []
        # A kernel without IPv6 answers with IPv4 messages.
        return [message for message in found if message[0] == socket.AF_INET6]

    def default_routes(self) -> list[DefaultRoute]:
        """Return the default routes in the main table, of all interfaces."""
        body = _RTMSG.pack(socket.AF_INET6, 0, 0, 0, _TABLE_MAIN, 0, 0, 0, 0)
        found: list[DefaultRoute] = []
        for message in self._kernel.ask(_RTM_GETROUTE, NLM_F_DUMP, body):
            if message[1] == 0 and message[7] == RouteType.UNICAST:
                found += _default_routes_of(message)
        return found

    def neighbour(self, ifindex: int, address: bytes) -> NudState:
        """Return the state of the kernel's entry for an address (16 bytes)."""
        try:
            (message,) = self._kernel.ask(_RTM_GETNEIGH, 0, _neighbour(ifindex, address))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return NudState.NONE
            raise
        return NudState(_NDMSG.unpack_from(message)[4])

    def neighbours(self, ifindex: int, family: int = socket.AF_INET6) -> list[Neighbour]:
        """Return the entries for all unicast addresses on an interface.

        Args:
            ifindex: The interface.
            family: AF_INET6, or AF_INET for IPv4, whose addresses have 4 bytes.
        """
        wanted = attribute(_NDA_IFINDEX, struct.pack("=i", ifindex))
        found = self._neighbours(family, wanted)
        return [each for where, each in found if where == ifindex]

    def all_neighbours(self) -> list[tuple[int, Neighbour]]:
        """Return the entries for all unicast IPv6 addresses, each with its interface."""
        return self._neighbours(socket.AF_INET6, b"")

    def _neighbours(self, family: int, wanted: bytes) -> list[tuple[int, Neighbour]]:
        """Return the entries for unicast addresses, each with its interface.

        Args:
            family: AF_INET6, or AF_INET for IPv4, whose addresses have 4 bytes.
            wanted: Attributes of the request, which may restrict the entries.
        """
        body = _NDMSG.pack(family, 0, 0, 0, 0, 0, 0) + wanted
        found: list[tuple[int, Neighbour]] = []
        try:
            for message in self._kernel.ask(_RTM_GETNEIGH, NLM_F_DUMP, body):
                _, _, _, where, state, _, _ = _NDMSG.unpack_from(message)
                entry = attributes(message[_NDMSG.size :])
                address = entry.get(_NDA_DST)
                if address and not _is_multicast(address):
                    mac = entry.get(_NDA_LLADDR)
                    found.append((where, Neighbour(address, NudState(state), mac)))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
        return found

    def forwards(self, ifindex: int) -> bool:
        """Return the sysctl `forwarding` of an interface; False for a missing interface."""
        # Opening the file takes ten times as long as reading it, so the descriptor is kept.
        for _ in range(2):
            try:
                if self._forwarding[0] != ifindex:
                    self._close_sysctl()
                    name = socket.if_indextoname(ifindex)
                    path = f"/proc/sys/net/ipv6/conf/{name}/forwarding"
                    self._forwarding = ifindex, os.open(path, os.O_RDONLY)
                return os.pread(self._forwarding[1], 8, 0).strip() != b"0"
            except OSError:  # The interface was removed or renamed.
                self._close_sysctl()
        return False

    def _close_sysctl(self) -> None:
        if self._forwarding[0]:
            os.close(self._forwarding[1])
        self._forwarding = 0, -1

    def solicit(self, ifindex: int, address: bytes) -> None:
        """Make the kernel solicit a neighbour, as for a packet that waits.

        Raises:
            OSError: ENOBUFS if the table is full, EPERM without CAP_NET_ADMIN.
        """
        wanted = _neighbour(ifindex, address, flags=_NTF_USE)
        self._kernel.ask(_RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE, wanted)

    def forget(self, ifindex: int, address: bytes) -> None:
        """Remove the entry of a neighbour, if there is one."""
        try:
            self._kernel.ask(_RTM_DELNEIGH, NLM_F_ACK, _neighbour(ifindex, address))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise


def _is_multicast(address: bytes) -> bool:
    return address[0] == 0xFF if len(address) == 16 else address[0] >= 0xE0


def gateways_among(routes: Iterable[bytes], ifindex: int) -> set[bytes]:
    """Return the gateways (16 bytes) of default routes among the result of Fib.routes_by()."""
    found: set[bytes] = set()
    for message in routes:
        if message[1] == 0:  # rtm_dst_len
            found.update(_gateways_of(message, ifindex))
    return found


def _gateways_of(message: bytes, ifindex: int) -> Iterator[bytes]:
    """Yield the gateways of a route, or of its next hops, on an interface."""
    route = attributes(message[_RTMSG.size :])
    if _RTA_GATEWAY in route:
        yield route[_RTA_GATEWAY]
    for leads_to, hop in _hops_of(route):
        if leads_to == ifindex and _RTA_GATEWAY in hop:
            yield hop[_RTA_GATEWAY]


def _default_routes_of(message: bytes) -> Iterator[DefaultRoute]:
    route = attributes(message[_RTMSG.size :])
    by_ra = message[5] == _RTPROT_RA
    # struct rta_cacheinfo: rta_expires in 1/100 s (USER_HZ), 0 for never
    ticks = struct.unpack_from("=i", route.get(_RTA_CACHEINFO, bytes(32)), 8)[0]
    expires = max(ticks // 100, 0) if ticks else None
    if _RTA_OIF in route:
        ifindex = struct.unpack("=i", route[_RTA_OIF])[0]
        yield DefaultRoute(ifindex, route.get(_RTA_GATEWAY), by_ra, expires, ticks < 0)
    for ifindex, hop in _hops_of(route):
        yield DefaultRoute(ifindex, hop.get(_RTA_GATEWAY), by_ra, expires, ticks < 0)


def _hops_of(route: dict[int, bytes]) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Yield interface and attributes of each next hop of a route (struct rtnexthop)."""
    for (*_, ifindex), hop in records(route.get(_RTA_MULTIPATH, b""), _NEXT_HOP):
        yield ifindex, attributes(hop[_NEXT_HOP.size :])


def _neighbour(ifindex: int, address: bytes, *, flags: int = 0) -> bytes:
    return _NDMSG.pack(socket.AF_INET6, 0, 0, ifindex, 0, flags, 0) + attribute(_NDA_DST, address)


def _route_of(message: bytes) -> Route:
    _, length, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(message)
    found = attributes(message[_RTMSG.size :])
    destination = found.get(_RTA_DST, bytes(16))
    return Route(
        _TYPES.get(kind, RouteType.NONE),
        struct.unpack("=i", found[_RTA_OIF])[0] if _RTA_OIF in found else 0,
        found.get(_RTA_GATEWAY),
        _RTA_ENCAP_TYPE in found,
        Prefix(destination, length),
        struct.unpack("=I", found[_RTA_TABLE])[0] if _RTA_TABLE in found else table,
    )
