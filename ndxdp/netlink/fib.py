"""The kernel's forwarding and neighbour tables, asked for one address at a time.

The messages are made here, and not by pyroute2, which takes ten times as long for one.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from ndxdp.ndp.address import is_link_local
from ndxdp.ndp.decision import Match
from ndxdp.ndp.profile import Answer
from ndxdp.ndp.reason import Reason
from ndxdp.netlink.rtnetlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    Rtnetlink,
    attribute,
    attributes,
    records,
)
from ndxdp.rules.interface_name import matches_dev
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
    """A neighbour entry's state (linux/neighbour.h); NONE also where there is no entry."""

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
        """The kernel sends to such a neighbour (NUD_VALID)."""
        return self not in (NudState.NONE, NudState.INCOMPLETE, NudState.FAILED)


class RouteType(IntEnum):
    """What becomes of a packet (RTN_*, linux/rtnetlink.h); NONE where there is no route."""

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
    """What the kernel would do with a packet.

    ifindex: of the interface that it leaves by, 0 without one. gateway: 16 bytes, None where the
    address itself is on that link. encap: it goes into a lightweight tunnel. prefix: the
    address alone, or what the table's entry is for where that was asked for. table: its number.
    """

    type: RouteType
    ifindex: int = 0
    gateway: bytes | None = None
    encap: bool = False
    prefix: Prefix | None = None
    table: int = 0


class Neighbour(NamedTuple):
    """The kernel's entry for an address (16 bytes). mac: 6 bytes, None while it is not known."""

    address: bytes
    state: NudState
    mac: bytes | None


class DefaultRoute(NamedTuple):
    """A way out, in the main table; one for each next hop.

    gateway: 16 bytes, None where all is on that link. by_ra: a router advertisement brought it,
    to the kernel or to a daemon. expires: seconds, None for never. has_expired: the kernel lists
    it until its next round, and does not use it any more.
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
    errno.EAGAIN: RouteType.NONE,  # `throw`, and nothing behind it
}

_KNOWN_TYPES = frozenset(RouteType)  # not THROW, NAT, XRESOLVE

_REFUSED = {
    RouteType.LOCAL: Reason.ROUTE_LOCAL,
    RouteType.ANYCAST: Reason.ROUTE_LOCAL,
    RouteType.BLACKHOLE: Reason.ROUTE_BLACKHOLE,
    RouteType.UNREACHABLE: Reason.ROUTE_UNREACHABLE,
    RouteType.PROHIBIT: Reason.ROUTE_PROHIBIT,
}


class Fib:
    """An open netlink socket. close() when done; of one thread."""

    def __init__(self) -> None:
        self._kernel = Rtnetlink()
        self._forwarding = 0, -1  # an interface, and its open sysctl

    def __enter__(self) -> Fib:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._kernel.close()
        self._close_sysctl()

    def route(self, target: bytes, ifindex: int, *, matched: bool = False) -> Route:
        """Of a packet for `target` (16 bytes) that came in by an interface, from ::.

        matched: the entry of the table, with its prefix, instead of the path that is taken.
        """
        if is_link_local(target):
            return Route(RouteType.NONE)  # such a packet is never forwarded
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
        """What ends at this host: its addresses, anycast ones too, and routes of type local.

        Link-local addresses are left out: a packet for them is never forwarded anyway.
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
        """Addresses (16 bytes) of the default routers behind an interface, in any table.

        The kernel looks through its tables for the interface's routes, once. Reading
        /proc/net/ipv6_route instead has it start anew for each 4 KB: 4 minutes of 200 000 routes.
        """
        body = _RTMSG.pack(socket.AF_INET6, 0, 0, 0, 0, 0, 0, 0, 0)
        body += attribute(_RTA_OIF, struct.pack("=i", ifindex))
        found: set[bytes] = set()
        try:
            for message in self._kernel.ask(_RTM_GETROUTE, NLM_F_DUMP, body):
                if message[1] == 0:  # rtm_dst_len
                    found.update(_gateways_of(message, ifindex))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
        return found

    def default_routes(self) -> list[DefaultRoute]:
        """Those of the main table, by every interface."""
        body = _RTMSG.pack(socket.AF_INET6, 0, 0, 0, _TABLE_MAIN, 0, 0, 0, 0)
        found: list[DefaultRoute] = []
        for message in self._kernel.ask(_RTM_GETROUTE, NLM_F_DUMP, body):
            if message[1] == 0 and message[7] == RouteType.UNICAST:
                found += _default_routes_of(message)
        return found

    def neighbour(self, ifindex: int, address: bytes) -> NudState:
        """The state of the kernel's entry for an address (16 bytes)."""
        try:
            (message,) = self._kernel.ask(_RTM_GETNEIGH, 0, _neighbour(ifindex, address))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return NudState.NONE
            raise
        return NudState(_NDMSG.unpack_from(message)[4])

    def neighbours(self, ifindex: int) -> list[Neighbour]:
        """Return the entries for all unicast addresses on an interface."""
        body = _NDMSG.pack(socket.AF_INET6, 0, 0, 0, 0, 0, 0)
        body += attribute(_NDA_IFINDEX, struct.pack("=i", ifindex))
        found: list[Neighbour] = []
        try:
            for message in self._kernel.ask(_RTM_GETNEIGH, NLM_F_DUMP, body):
                _, _, _, where, state, _, _ = _NDMSG.unpack_from(message)
                told = attributes(message[_NDMSG.size :])
                address = told.get(_NDA_DST)
                if where == ifindex and address and address[0] != 0xFF:
                    found.append(Neighbour(address, NudState(state), told.get(_NDA_LLADDR)))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
        return found

    def forwards(self, ifindex: int) -> bool:
        """The interface's sysctl `forwarding`; False where there is no such interface."""
        # Opening it costs ten times what reading it does.
        for _ in range(2):
            try:
                if self._forwarding[0] != ifindex:
                    self._close_sysctl()
                    name = socket.if_indextoname(ifindex)
                    path = f"/proc/sys/net/ipv6/conf/{name}/forwarding"
                    self._forwarding = ifindex, os.open(path, os.O_RDONLY)
                return os.pread(self._forwarding[1], 8, 0).strip() != b"0"
            except OSError:  # it went, and may be back under another name
                self._close_sysctl()
        return False

    def _close_sysctl(self) -> None:
        if self._forwarding[0]:
            os.close(self._forwarding[1])
        self._forwarding = 0, -1

    def solicit(self, ifindex: int, address: bytes) -> None:
        """Have the kernel solicit a neighbour, as if a packet waited for it.

        OSError ENOBUFS where its table is full, EPERM without CAP_NET_ADMIN.
        """
        wanted = _neighbour(ifindex, address, flags=_NTF_USE)
        self._kernel.ask(_RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE, wanted)

    def forget(self, ifindex: int, address: bytes) -> None:
        """Remove a neighbour's entry; that there is none is no error."""
        try:
            self._kernel.ask(_RTM_DELNEIGH, NLM_F_ACK, _neighbour(ifindex, address))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise


def refusal(fib: Fib, ifindex: int, target: bytes, rule: Match, defends: bool) -> Reason | None:
    """Return why the kernel's tables speak against answering, None if they do not.

    The program finds the same in bpf_fib_lookup() and in the maps `locals` and `on_link`.

    Args:
        fib: The tables.
        ifindex: The interface that a packet for the target would come in by.
        target: The address, 16 bytes.
        rule: One that depends on the tables, or an `always` rule where `defends` is true.
        defends: True where the answer would defend the target against DAD.
    """
    if rule.answer is Answer.LOCAL:
        against = None if _is_local(fib.route(target, ifindex)) else Reason.NOT_LOCAL
    else:
        against = _forwarding(fib, ifindex, target, rule, defends)
        if rule.answer is Answer.ALWAYS:
            against = _may_be_on_link(fib, ifindex, target, against)
    if against is None and defends and fib.neighbour(ifindex, target).is_valid:
        return Reason.DAD_ON_LINK
    return against


def _forwarding(fib: Fib, ifindex: int, target: bytes, rule: Match, defends: bool) -> Reason | None:
    if not is_link_local(target) and not fib.forwards(ifindex):
        return Reason.NOT_FORWARDING
    route = fib.route(target, ifindex)
    if route.type is not RouteType.UNICAST:
        return _REFUSED.get(route.type, Reason.NO_ROUTE)
    if route.encap:
        return Reason.ROUTE_ENCAP
    if route.ifindex == ifindex:
        return Reason.ROUTE_BACK
    try:
        if rule.dev and not matches_dev(socket.if_indextoname(route.ifindex), rule.dev):
            return Reason.ROUTE_ELSEWHERE
    except OSError:  # it went while we looked
        return Reason.ROUTE_ELSEWHERE
    if rule.answer is Answer.ALWAYS or (rule.answer is Answer.ROUTED and not defends):
        return None
    if route.gateway is not None:
        return Reason.ROUTE_GATEWAY
    is_valid = fib.neighbour(route.ifindex, target).is_valid
    return None if is_valid else Reason.NO_NEIGHBOUR


def _may_be_on_link(
    fib: Fib, ifindex: int, target: bytes, forwards: Reason | None
) -> Reason | None:
    """Return why an `always` rule must not defend a target, from what _forwarding() said of it."""
    if forwards is Reason.ROUTE_BACK:
        return Reason.DAD_ON_LINK
    # Without forwarding the kernel does not say where a route leads.
    if forwards is Reason.NOT_FORWARDING and not _is_local(fib.route(target, ifindex)):
        return forwards
    return None


def _is_local(route: Route) -> bool:
    return route.type in (RouteType.LOCAL, RouteType.ANYCAST)


def _gateways_of(message: bytes, ifindex: int) -> Iterator[bytes]:
    """A route's gateway, or those of its next hops on an interface."""
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
    """Interface and attributes of a route's next hops (struct rtnexthop)."""
    for (*_, ifindex), hop in records(route.get(_RTA_MULTIPATH, b""), _NEXT_HOP):
        yield ifindex, attributes(hop[_NEXT_HOP.size :])


def _neighbour(ifindex: int, address: bytes, *, flags: int = 0) -> bytes:
    return _NDMSG.pack(socket.AF_INET6, 0, 0, ifindex, 0, flags, 0) + attribute(_NDA_DST, address)


def _route_of(message: bytes) -> Route:
    _, length, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(message)
    found = attributes(message[_RTMSG.size :])
    destination = found.get(_RTA_DST, bytes(16))
    return Route(
        RouteType(kind) if kind in _KNOWN_TYPES else RouteType.NONE,
        struct.unpack("=i", found[_RTA_OIF])[0] if _RTA_OIF in found else 0,
        found.get(_RTA_GATEWAY),
        _RTA_ENCAP_TYPE in found,
        Prefix(destination, length),
        struct.unpack("=I", found[_RTA_TABLE])[0] if _RTA_TABLE in found else table,
    )


def default_gateways(ifindex: int) -> set[bytes]:
    """Addresses (16 bytes) of the default routers behind an interface, in any table."""
    with Fib() as fib:
        return fib.gateways(ifindex)
