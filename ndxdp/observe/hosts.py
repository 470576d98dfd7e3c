"""Learned hosts of shares: the kernel's host routes, joined with the reports of the daemons."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ndxdp.netlink import host_routes, names, onlink
from ndxdp.netlink.fib import Fib
from ndxdp.netlink.host_routes import HostRoute
from ndxdp.rules.address import address_text, mac_text
from ndxdp.rules.interface_name import natural_order
from ndxdp.rules.prefix import Prefix
from ndxdp.runtime.share_report import ShareReport


class Host(NamedTuple):
    """A host behind this one.

    Attributes:
        address: 16 bytes.
        interface: The downstream interface.
        upstream: The upstream interface of its share; "" if no report has the interface.
        mac: The MAC, as text; None if nobody knows it, or on a link without MACs.
        since: time.time() when it was learned; None if no report has it.
        seen: time.time() of its last sign of life; None if no report has it.
        learned: The route is ndxdp's; False for a route of another program, on a link without
            Neighbor Discovery.
    """

    address: bytes
    interface: str
    upstream: str = ""
    mac: str | None = None
    since: float | None = None
    seen: float | None = None
    learned: bool = True


def read(reports: Sequence[ShareReport]) -> list[Host]:
    """Return the hosts of this network namespace, by interface in natural order, then by address.

    Args:
        reports: The reports of its shares.

    Raises:
        OSError: The kernel's routes cannot be read.
    """
    routes, links = host_routes.read(), dict(socket.if_nameindex())
    learned = [(each.address, links.get(each.ifindex, "")) for each in routes]
    found = join(learned, reports, set(routed(reports)) - set(learned))
    unknown = {each.interface for each in found if each.mac is None and each.learned}
    entries = {name: _macs(index) for index, name in links.items() if name in unknown}
    return [
        each._replace(mac=entries.get(each.interface, {}).get(each.address))
        if each.mac is None
        else each
        for each in found
    ]


def join(
    learned: Iterable[tuple[bytes, str]],
    reports: Sequence[ShareReport],
    others: Iterable[tuple[bytes, str]] = (),
) -> list[Host]:
    """Return a host for each route, with what the reports know of it.

    Args:
        learned: Address and interface of each route of ndxdp's.
        reports: The reports of the shares.
        others: Those of other programs' routes.
    """
    shares = {link.interface: each.upstream for each in reports for link in each.links[1:]}
    known = {
        (socket.inet_pton(socket.AF_INET6, host.address), host.interface): host
        for each in reports
        for host in each.hosts
    }
    found = []
    for routes, is_learned in ((learned, True), (others, False)):
        for address, name in routes:
            if not name:  # the interface was removed a moment ago
                continue
            made = Host(address, name, shares.get(name, ""), learned=is_learned)
            if host := known.get((address, name)):
                made = made._replace(mac=host.mac, since=host.since, seen=host.seen)
            found.append(made)
    return sorted(found, key=_order)


def routed(reports: Sequence[ShareReport]) -> list[tuple[bytes, str]]:
    """Return the addresses in shared prefixes that the kernel routes to links without MACs.

    Return the interface with each address. Routes to more than an address are left out.

    Raises:
        OSError: The kernel's routes cannot be read.
    """
    prefixes = {
        link.interface: [_prefix_of(each.prefix) for each in report.prefixes]
        for report in reports
        for link in report.links
        if link.kind == "routes"
    }
    if not prefixes:
        return []
    links = dict(socket.if_nameindex())
    return [
        (route.prefix.address, name)
        for route in onlink.routes_behind(frozenset())
        if route.prefix.length == 128
        and (name := links.get(route.ifindex, "")) in prefixes
        and any(prefix.covers(route.prefix) for prefix in prefixes[name])
    ]


def of_reports(reports: Sequence[ShareReport]) -> list[Host]:
    """Return the hosts of the reports, where the kernel's routes cannot be read."""
    routes = [
        (socket.inet_pton(socket.AF_INET6, host.address), host.interface)
        for each in reports
        for host in each.hosts
    ]
    return join(routes, reports)


def forget(hosts: Iterable[Host]) -> list[Host]:
    """Remove the routes of hosts, which makes the daemon forget them; return those without one.

    Raises:
        OSError: The kernel refused.
    """
    missing = []
    with contextlib.closing(host_routes.HostRoutes()) as routes:
        for host in hosts:
            index = names.index_of(host.interface)  # 0 if it was removed, and the route with it
            if not index or not routes.remove(HostRoute(host.address, index)):
                missing.append(host)
    return missing


def host_data(host: Host) -> dict[str, Any]:
    """Return a host as JSON objects have it (docs/json.md)."""
    return {
        "address": address_text(host.address),
        "interface": host.interface,
        "upstream": host.upstream or None,
        "mac": host.mac,
        "since": moment(host.since),
        "seen": moment(host.seen),
        "learned": host.learned,
    }


def moment(seconds: float | None) -> str | None:
    """Format a time such as time.time() returns: `2026-01-31T13:03:22Z`; None for None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def by_interface(hosts: Iterable[Host]) -> Mapping[str, int]:
    """Return the number of hosts on each interface."""
    return Counter(each.interface for each in hosts)


def _prefix_of(text: str) -> Prefix:
    """Return a prefix of a report, which may have bits set behind its length."""
    address, _, length = text.partition("/")
    return Prefix.around(socket.inet_pton(socket.AF_INET6, address), int(length))


def _order(host: Host) -> tuple[list[tuple[str, int, str]], bytes]:
    return natural_order(host.interface), host.address


def _macs(ifindex: int) -> dict[bytes, str]:
    """Return the MACs in the kernel's neighbour table, as far as it can be read."""
    with contextlib.suppress(OSError), contextlib.closing(Fib()) as fib:
        return dict(_known(fib, ifindex))
    return {}


def _known(fib: Fib, ifindex: int) -> Iterator[tuple[bytes, str]]:
    for each in fib.neighbours(ifindex):
        if each.mac and len(each.mac) == 6:
            yield each.address, mac_text(each.mac)
