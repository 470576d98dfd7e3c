"""Recognition of hosts behind this one that could use the prefix of its uplink: a share.

The case: an on-link prefix on the uplink, another interface with hosts that have no prefix of
their own, and no prefix that is delegated to this host.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ndxdp.doctor import interfaces
from ndxdp.netlink import onlink, sysctl
from ndxdp.netlink.fib import Fib, NudState
from ndxdp.netlink.link_overview import SeenLink, all_links
from ndxdp.rules.prefix import Prefix

log = logging.getLogger(__name__)

_READ_MAX = 64  # interfaces whose neighbours are read

_PRIVATE = Prefix(b"\xfc" + bytes(15), 7)
"""Unique local addresses (RFC 4193)."""

_ENGINES = re.compile(r"docker0|docker_gwbridge|br-[0-9a-f]{12}|podman\d+|cni-podman\d+")
"""Bridges whose addresses Docker or Podman assigns: containers there make none of their own."""

_WITHOUT_HOSTS = ("dummy", "vrf", "ifb", "nlmon", "sit", "ip6gre", "vcan")
"""Kinds of links that lead to no host of their own."""

_TUNNELS = ("wireguard", "tun", "ip6tnl", "gre", "xfrm", "ppp")


class LinkBehind(NamedTuple):
    """An interface behind this host.

    Attributes:
        name: The name.
        kind: The kind, such as `bridge`; "" for a physical interface.
        quiet: The interface has no MAC, so that its hosts are those that routes lead to.
        neighbours: The number of live IPv6 neighbours.
        ports: The number of operational ports of a bridge.
        forwarding: The sysctl forwarding.
        prefixes: The prefixes that are on-link there, or routed there without a gateway.
        hosts: The host routes (/128) by the interface, without those of a share.
        gateways: The prefixes that are routed there by a gateway.
        leads_out: A default route, of IPv4 at least, leaves by the interface: another uplink.
        carrier: The interface has carrier.
        learned: The number of hosts there that a share has learned.
        disabled: The sysctl disable_ipv6, as on a bridge of libvirt or Incus without IPv6.
    """

    name: str
    kind: str = ""
    quiet: bool = False
    neighbours: int = 0
    ports: int = 0
    forwarding: bool = True
    prefixes: tuple[Prefix, ...] = ()
    hosts: tuple[Prefix, ...] = ()
    gateways: tuple[Prefix, ...] = ()
    leads_out: bool = False
    carrier: bool = True
    learned: int = 0
    disabled: bool = False

    @property
    def by_engine(self) -> bool:
        """True for a bridge of Docker or Podman."""
        return self.kind == "bridge" and bool(_ENGINES.fullmatch(self.name))

    @property
    def has_hosts(self) -> bool:
        """True if hosts are known to be there, or are likely: a bridge with ports."""
        ports = self.ports if self.kind == "bridge" else 0
        return bool(self.neighbours or self.learned or ports)

    @property
    def about_hosts(self) -> str:
        """A text on the hosts, such as `3 neighbours`."""
        for count, word in (
            (self.neighbours, "neighbour"),
            (self.learned, "learned host"),
            (len(self.hosts), "routed host"),
            (self.ports, "port"),
        ):
            if count:
                return f"{count} {word}{'s' if count > 1 else ''}"
        return "no hosts"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The interfaces and prefixes behind this host.

    Attributes:
        links: The interfaces that are up, without the uplinks and without ports of bridges.
        discarded: Prefixes that the kernel discards, as of a delegated prefix.
    """

    links: tuple[LinkBehind, ...] = ()
    discarded: tuple[Prefix, ...] = ()


class Case(NamedTuple):
    """A share that would serve hosts behind this host.

    Attributes:
        prefixes: The on-link prefixes of the uplink, without private ones.
        downstream: The interfaces behind, in their order.
        both: The interfaces among them that have one of the prefixes on-link, too.
    """

    prefixes: tuple[Prefix, ...]
    downstream: tuple[LinkBehind, ...]
    both: tuple[LinkBehind, ...]


def gather(uplinks: Iterable[int]) -> Surroundings:
    """Read the interfaces behind this host, their neighbours and routes.

    Args:
        uplinks: The indexes of the uplinks, and of bridges or bonds that they are ports of.

    Raises:
        OSError: The kernel refused a request.
    """
    excluded = frozenset(uplinks)
    seen = all_links()
    kept = [
        link
        for link in seen
        if link.up
        and not link.is_loopback
        and not link.master
        and link.ifindex not in excluded
        and link.kind not in _WITHOUT_HOSTS
    ]
    ports: dict[int, int] = {}
    for link in seen:
        if link.master and link.operational:
            ports[link.master] = ports.get(link.master, 0) + 1
    routes: dict[int, list[onlink.BehindRoute]] = {}
    for route in onlink.routes_behind(excluded):
        routes.setdefault(route.ifindex, []).append(route)
    leading_out = frozenset(interfaces.ipv4_uplinks())
    with Fib() as fib:
        found = tuple(
            _behind(
                link,
                _alive(fib, link.ifindex) if number < _READ_MAX and link.mac else 0,
                ports.get(link.ifindex, 0),
                routes.get(link.ifindex, []),
                leading_out,
            )
            for number, link in enumerate(kept)
        )
    return Surroundings(found, tuple(onlink.discarded()))


def _behind(
    link: SeenLink,
    neighbours: int,
    ports: int,
    routes: list[onlink.BehindRoute],
    leading_out: frozenset[str],
) -> LinkBehind:
    return LinkBehind(
        link.name,
        link.kind,
        not link.mac,
        neighbours,
        ports,
        bool(sysctl.conf(link.name, "forwarding")),
        tuple(each.prefix for each in routes if each.direct and each.prefix.length < 128),
        tuple(
            each.prefix
            for each in routes
            if each.direct and each.prefix.length == 128 and not each.learned
        ),
        tuple(each.prefix for each in routes if not each.direct),
        link.name in leading_out,
        link.operational,
        sum(each.learned for each in routes),
        bool(sysctl.conf(link.name, "disable_ipv6")),
    )


def _alive(fib: Fib, ifindex: int) -> int:
    """Return the number of nodes on an interface that the kernel has live neighbour entries of.

    A host that does not forward IPv6 yet knows the nodes behind it mostly by IPv4.
    """
    known = [*fib.neighbours(ifindex), *fib.neighbours(ifindex, socket.AF_INET)]
    return len(
        {
            each.mac
            for each in known
            if each.mac and each.state.is_valid and each.state is not NudState.NOARP
        }
    )


def find(on_link: Iterable[Prefix], surroundings: Surroundings) -> Case | None:
    """Return the share that fits an uplink; None if none does.

    None fits if a prefix of this host's own is routed to it: its hosts have addresses of that one.

    Args:
        on_link: The on-link prefixes of the uplink.
        surroundings: What is behind this host.
    """
    prefixes = tuple(sorted(each for each in on_link if not _PRIVATE.covers(each)))
    if not prefixes or delegated(prefixes, surroundings):
        return None
    fitting = [link for link in surroundings.links if not link.by_engine and _fits(link, prefixes)]
    if all(link.quiet for link in fitting):  # a `routed` rule is enough for them
        return None
    both = tuple(link for link in fitting if set(link.prefixes) & set(prefixes))
    return Case(prefixes, tuple(fitting), both)


def empty(on_link: Iterable[Prefix], surroundings: Surroundings) -> tuple[LinkBehind, ...]:
    """Return links whose hosts could use the uplink's prefixes, if there are any.

    No host is known there: the kernel of a host that does not forward ignores most of what they
    send.

    Args:
        on_link: The on-link prefixes of the uplink.
        surroundings: What is behind this host.
    """
    prefixes = tuple(each for each in on_link if not _PRIVATE.covers(each))
    if not prefixes or delegated(prefixes, surroundings):
        return ()
    return tuple(
        link
        for link in surroundings.links
        if link.carrier
        and not (link.leads_out or link.disabled)
        and not (link.quiet or link.by_engine or link.has_hosts or link.prefixes or link.hosts)
        and (link.kind != "bridge" or link.ports)
    )


def delegated(on_link: Iterable[Prefix], surroundings: Surroundings) -> Prefix | None:
    """Return a prefix that is routed to this host for the hosts behind it; None without one.

    These are prefixes that an interface behind this host has, and those that the kernel discards
    in part, outside the on-link prefixes of the uplink.
    """
    behind = (prefix for link in surroundings.links for prefix in (*link.prefixes, *link.gateways))
    outside = (
        prefix
        for prefix in (*behind, *surroundings.discarded)
        if not _PRIVATE.covers(prefix)
        and not any(each.covers(prefix) or prefix.covers(each) for each in on_link)
    )
    return min(outside, default=None)


def _fits(link: LinkBehind, on_link: tuple[Prefix, ...]) -> bool:
    """Return whether hosts on a link can have addresses of the uplink's prefixes."""
    if link.leads_out or link.disabled:
        return False
    inside = any(each.covers(host) for each in on_link for host in link.hosts)
    if link.quiet:
        return link.kind in _TUNNELS and inside
    if inside:  # another program has routes to hosts there, for which a rule is enough
        return False
    public = [each for each in link.prefixes if not _PRIVATE.covers(each)]
    return (link.has_hosts or bool(public)) and all(each in on_link for each in public)
