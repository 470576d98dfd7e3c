"""Interfaces that doctor examines if the command names none."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

from ndxdp.errors import NdxdpError
from ndxdp.netlink import links
from ndxdp.netlink.fib import DefaultRoute, Fib
from ndxdp.observe import status
from ndxdp.store.directories import Trees

log = logging.getLogger(__name__)

_IPV4_ROUTES = Path("/proc/thread-self/net/route")

_UPLINKS_MAX = 4  # links to examine if neither rules nor routes select one


def default_routes() -> dict[str, list[DefaultRoute]]:
    """Return the IPv6 default routes by the names of their interfaces."""
    found: dict[str, list[DefaultRoute]] = {}
    with Fib() as fib:
        for route in fib.default_routes():
            try:
                found.setdefault(socket.if_indextoname(route.ifindex), []).append(route)
            except OSError:  # the interface was deleted
                continue
    return found


def exists(name: str) -> bool:
    """Return whether an interface exists in this network namespace."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def to_examine(trees: Trees) -> list[str]:
    """Return the interfaces to examine.

    These are the interfaces of which ndxdp has rules, or which a daemon configures. If none of them
    exists, those of default routes are added; without any, all Ethernet links that are up.

    Raises:
        NdxdpError: There is no such interface.
    """
    try:
        ours = status.interfaces(trees)
    except (NdxdpError, OSError) as error:  # for example, there is no BPF file system
        log.debug("cannot list the interfaces of ndxdp: %s", error)
        ours = []
    try:
        reported = [each["interface"] for one in status.reports(trees) for each in one.interfaces]
    except OSError as error:  # no /proc
        log.debug("cannot list the interfaces of daemons: %s", error)
        reported = []
    ours += [name for name in reported if name not in ours]
    found = list(ours)
    if not any(exists(name) for name in ours):
        # A tunnel may have the default route; it comes last, because no node solicits there.
        others = sorted(_of_routes(), key=_is_quiet) or _uplinks()
        found += [name for name in others if name not in ours]
    if not found:
        raise NdxdpError(
            "no interface with a MAC address is up, and ndxdp answers on none",
            "ndxdp doctor IFACE",
        )
    return found


def _uplinks() -> list[str]:
    """Return the Ethernet links that are up, without ports of bridges or bonds.

    Bridges, which mostly lead to containers, are returned only if there are no other links.
    """
    try:
        found = [links.find_link(name) for _, name in socket.if_nameindex()]
    except (NdxdpError, OSError) as error:
        log.debug("cannot list the links: %s", error)
        return []
    candidates = [
        link
        for link in found
        if link and link.ethernet and link.up and link.l3_ifindex == link.ifindex
    ]
    ends = [link.name for link in candidates if link.kind != "bridge"]
    return (ends or [link.name for link in candidates])[:_UPLINKS_MAX]


def _of_routes() -> list[str]:
    """Return the interfaces of IPv6 default routes; without any, of IPv4 ones."""
    try:
        found = sorted(default_routes())
    except OSError as error:  # no netlink, or no IPv6
        log.debug("cannot read the IPv6 routes: %s", error)
        found = []
    return found or ipv4_uplinks()


def ipv4_uplinks() -> list[str]:
    """Return the interfaces of IPv4 default routes: their destination and mask are zero."""
    try:
        lines = [line.split() for line in _IPV4_ROUTES.read_text().splitlines()[1:]]
    except OSError:
        return []
    zero = "00000000"
    return sorted({line[0] for line in lines if (line[1], line[7]) == (zero, zero)})


def _is_quiet(name: str) -> bool:
    try:
        return links.is_quiet(name)
    except NdxdpError as error:  # without netlink, the interface is examined all the same
        log.debug("cannot read the link %s: %s", name, error)
        return False
