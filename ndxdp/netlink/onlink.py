"""On-link prefixes of an interface, networks behind the host, and neighbours.

This module does not use pyroute2, because loading pyroute2 would slow down commands.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

from ndxdp.ndp.address import is_link_local, is_multicast
from ndxdp.netlink.addresses import own_addresses
from ndxdp.netlink.fib import Fib, NudState, RouteType
from ndxdp.netlink.host_routes import PROTOCOL
from ndxdp.netlink.rtnetlink import NLM_F_DUMP, Rtnetlink, attributes, records
from ndxdp.rules.prefix import Prefix

# linux/rtnetlink.h
_RTM_GETROUTE = 26
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA = 1, 4, 5, 9, 18

_RTMSG = struct.Struct("=BBBBBBBBI")
_NEXT_HOP = struct.Struct("=HBBi")  # struct rtnexthop


class OnLink(NamedTuple):
    """The on-link prefixes of an uplink.

    Attributes:
        prefixes: The prefixes of the uplink's addresses and of its routes without a gateway, except
            for link-local and multicast prefixes and single addresses.
        ifindexes: The interfaces of which the prefixes were read.
    """

    prefixes: frozenset[Prefix] = frozenset()
    ifindexes: frozenset[int] = frozenset()


class BehindRoute(NamedTuple):
    """A route to a network behind the host.

    Attributes:
        prefix: The destination.
        ifindex: The interface that the route leaves by.
        direct: True without a gateway: the destinations are neighbours there.
        learned: True for the route of a host that a share has learned.
    """

    prefix: Prefix
    ifindex: int
    direct: bool
    learned: bool = False


def read(ifindexes: Iterable[int]) -> OnLink:
    """Read the on-link prefixes of an uplink; a missing interface has none.

    Args:
        ifindexes: The interface, and the bridge or bond that it is a port of; zeros are ignored.
    """
    wanted = frozenset(filter(None, ifindexes))
    own = [each.prefix for ifindex in wanted for each in own_addresses(ifindex)]
    with Fib() as fib:
        routes = [fib.routes_by(ifindex) for ifindex in wanted]
    return among(own, chain.from_iterable(routes), wanted)


def among(own: Iterable[Prefix], routes: Iterable[bytes], ifindexes: Iterable[int]) -> OnLink:
    """Return what read() returns, from what was read already.

    Args:
        own: The prefixes of the uplink's addresses; see OwnAddress.prefix.
        routes: The results of Fib.routes_by().
        ifindexes: The interfaces of which they were read.
    """
    found = {*own, *_of_routes(routes)}
    return OnLink(frozenset(each for each in found if _counts(each)), frozenset(ifindexes))


def _counts(prefix: Prefix) -> bool:
    special = (is_link_local(prefix.address) and prefix.length >= 10) or (
        is_multicast(prefix.address) and prefix.length >= 8
    )
    return 0 < prefix.length < 128 and not special


def _dump(kernel: Rtnetlink, kind: int, body: bytes) -> list[bytes]:
    """Return the IPv6 messages of a dump; none for an interface that does not exist."""
    try:
        answers = kernel.ask(kind, NLM_F_DUMP, body)
        # A message begins with its family. A kernel without IPv6 answers with IPv4 messages.
        return [message for message in answers if message[0] == socket.AF_INET6]
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return []


def _of_routes(routes: Iterable[bytes]) -> set[Prefix]:
    """Return the destinations of the routes without a gateway."""
    found = set()
    for message in routes:
        if message[7] != RouteType.UNICAST or message[1] in (0, 128):  # rtm_type, rtm_dst_len
            continue
        route = attributes(message[_RTMSG.size :])
        # An IPv6 route with several next hops always has gateways.
        if _RTA_OIF in route and _RTA_GATEWAY not in route and _RTA_VIA not in route:
            found.add(Prefix(route.get(_RTA_DST, bytes(16)), message[1]))
    return found


def behind(inside: Prefix, uplink: frozenset[int]) -> list[Prefix]:
    """Return the prefixes inside a rule's prefix that are routed to networks behind the host.

    Prefixes inside another found prefix, routes by the uplink and local routes are left out.

    Args:
        inside: The rule's prefix.
        uplink: The ifindexes of the uplink.
    """
    found = {
        route.prefix
        for route in routes_behind(uplink)
        if route.prefix.length > inside.length
        and Prefix.around(route.prefix.address, inside.length) == inside
    }
    return [
        each
        for each in sorted(found)
        if not any(
            Prefix.around(each.address, length) in found
            for length in range(inside.length + 1, each.length)
        )
    ]


def routes_behind(uplink: frozenset[int]) -> list[BehindRoute]:
    """Return the routes, of all tables, that leave by other interfaces than the uplink.

    Default, link-local, multicast and local routes are left out. A route with several next hops is
    one entry for each interface.

    Args:
        uplink: The ifindexes of the uplink.
    """
    body = _RTMSG.pack(socket.AF_INET6, 0, 0, 0, 0, 0, 0, 0, 0)
    found: set[BehindRoute] = set()
    with Rtnetlink() as kernel:
        for message in _dump(kernel, _RTM_GETROUTE, body):
            if message[7] != RouteType.UNICAST:
                continue
            route = attributes(message[_RTMSG.size :])
            prefix = Prefix(route.get(_RTA_DST, bytes(16)), message[1])
            if not _counts(prefix) and (prefix.length < 128 or is_link_local(prefix.address)):
                continue
            direct = not route.keys() & {_RTA_GATEWAY, _RTA_VIA, _RTA_MULTIPATH}
            found |= {
                BehindRoute(prefix, ifindex, direct, message[5] == PROTOCOL)  # rtm_protocol
                for ifindex in _leads(route)
                if ifindex not in uplink
            }
    return sorted(found)


def discarded() -> list[Prefix]:
    """Return the prefixes of all unreachable, blackhole and prohibit routes.

    A host to which a prefix is delegated has such a route for the parts that it does not use (RFC
    7084, requirement WPD-5). Default, link-local and multicast routes are left out.
    """
    kinds = (RouteType.BLACKHOLE, RouteType.UNREACHABLE, RouteType.PROHIBIT)
    body = _RTMSG.pack(socket.AF_INET6, 0, 0, 0, 0, 0, 0, 0, 0)
    with Rtnetlink() as kernel:
        messages = _dump(kernel, _RTM_GETROUTE, body)
    found = {
        Prefix(attributes(message[_RTMSG.size :]).get(_RTA_DST, bytes(16)), message[1])
        for message in messages
        if message[7] in kinds
    }
    return sorted(filter(_counts, found))


def _leads(route: dict[int, bytes]) -> set[int]:
    """Return the interfaces that a route leaves by."""
    found = {ifindex for (*_, ifindex), _ in records(route.get(_RTA_MULTIPATH, b""), _NEXT_HOP)}
    if _RTA_OIF in route:
        found.add(struct.unpack("=i", route[_RTA_OIF])[0])
    return found


def neighbours(ifindex: int) -> dict[bytes, bytes]:
    """Return the MACs of the live neighbours on an interface by their addresses (16 bytes).

    Gateways are left out: their addresses are owned, so that ndxdp does not answer for them.
    """
    with Fib() as fib:
        found = {
            each.address: each.mac
            for each in fib.neighbours(ifindex)
            if each.mac and each.state.is_valid and each.state is not NudState.NOARP
        }
        gateways = fib.gateways(ifindex) if found else set()
    return {address: mac for address, mac in found.items() if address not in gateways}
