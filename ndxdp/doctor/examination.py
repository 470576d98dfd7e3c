"""All checks of an interface, in the order in which a packet meets what they are about."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ndxdp import status
from ndxdp.doctor import (
    arrival,
    containers,
    engine,
    exposure,
    firewall,
    forwarding,
    gateway,
    limits,
    listeners,
    manager,
    probe,
    program,
    reception,
    source,
)
from ndxdp.doctor.finding import Finding, failure, note, unseen
from ndxdp.errors import NdxdpError
from ndxdp.kernel.pins import Trees
from ndxdp.ndp import Answer
from ndxdp.rules import Rules
from ndxdp.wire import netlink
from ndxdp.wire.fib import DefaultRoute, Fib
from ndxdp.wire.netlink import Link, OwnAddress

_IPV4_ROUTES = Path("/proc/thread-self/net/route")

_SOURCES = 4  # addresses behind the host from which a gateway is asked, half a second each


class Section(NamedTuple):
    """What one check found; nothing at all where all is well."""

    check: str
    findings: list[Finding]


def routes() -> dict[str, list[DefaultRoute]]:
    """The IPv6 default routes by the names of their interfaces."""
    found: dict[str, list[DefaultRoute]] = {}
    with Fib() as fib:
        for route in fib.default_routes():
            try:
                found.setdefault(socket.if_indextoname(route.ifindex), []).append(route)
            except OSError:  # it went
                continue
    return found


def interfaces(trees: Trees) -> list[str]:
    """Return the interfaces to examine where none is named.

    Those are the ones that ndxdp works on, or else the ones of default routes.

    NdxdpError if there is none.
    """
    try:
        found = status.interfaces(trees)
    except NdxdpError:  # no BPF file system
        found = []
    # A tunnel may be the way out, too; it comes last, as nobody solicits there.
    found = found or sorted(sorted(routes()) or _of_ipv4(), key=netlink.is_quiet)
    if not found:
        raise NdxdpError(
            "no interface has a default route, nor does ndxdp answer on any",
            "ndxdp doctor IFACE",
        )
    return found


def _is_bridge(name: str) -> bool:
    link = netlink.find_link(name)
    return link is not None and link.kind == "bridge"


def _of_ipv4() -> list[str]:
    """The interfaces of IPv4 default routes: their destination is zero, and so is the mask."""
    try:
        lines = [line.split() for line in _IPV4_ROUTES.read_text().splitlines()[1:]]
    except OSError:
        return []
    zero = "00000000"
    return sorted({line[0] for line in lines if (line[1], line[7]) == (zero, zero)})


def examine(
    name: str, trees: Trees, docker_socket: str, *, probing: bool = False, watching: float = 0
) -> Iterator[Section]:
    """Look at an interface; NdxdpError where there is none.

    Where it has no MAC address, what is about solicitations is left out.

    probing: send solicitations. watching: seconds to look at what comes, where ndxdp answers.
    """
    link = netlink.any_link(name)
    quiet = not netlink.has_mac(link)
    if not link.up:
        down = failure(
            f"{name} is down", "nothing comes in or goes out there", f"ip link set dev {name} up"
        )
        yield Section("link", [down])
        return
    # A port's addresses, routes and sysctls are its bridge's.
    ifindex = link.l3_ifindex
    above = socket.if_indextoname(ifindex)
    by_interface = routes()
    here = by_interface.get(above, [])
    gateways = [route.gateway for route in here if route.gateway]
    addresses = netlink.own_addresses(ifindex)
    has_global = any(not own.link_local for own in addresses)
    if quiet:
        yield from _examine_quiet(
            trees, link, by_interface, addresses, docker_socket, sending=probing or bool(watching)
        )
        return
    found = program.gather(trees, link)
    rules = found.answering.rules if found.answering else Rules()
    table = found.answering.table if found.answering else None
    managed = manager.gather(above, ifindex)

    yield Section("manager", manager.judge(above, managed))
    passing = forwarding.gather(above, by_interface, has_global, managed)
    yield Section("forwarding", forwarding.judge(passing))
    probed = None
    if probing:
        asking = netlink.answering_link(above) if above != name else link
        behind = rules.only(lambda rule: rule.answer is not Answer.NEVER)
        exact = islice(behind.addresses, _SOURCES)
        sources = [*(own.address for own in addresses), *exact]
        probed = probe.gather(asking, sorted(set(gateways)), sorted(behind.wider), sources)
    known = gateway.gather(above, ifindex, here, addresses, probed)
    yield Section("gateway", gateway.judge(known))
    if probed is not None:
        yield Section("probe", probe.judge(probed))
    yield Section("source", source.judge(source.gather(above, ifindex, here, addresses)))
    attached = bool(found.answering and found.answering.attached)
    yield Section("reception", reception.judge(reception.gather(name, link.ifindex, attached)))
    yield Section("program", program.judge(found))
    if watching and table is not None and attached:
        seen = arrival.gather(trees, link, table, addresses, watching)
        yield Section("arrival", arrival.judge(seen))
    elif watching:
        nothing = unseen(f"whether answers arrive: ndxdp is not seen to answer on {name}")
        yield Section("arrival", [nothing])
    yield Section("listeners", listeners.judge(listeners.gather(above, ifindex, table)))
    advertised = any(route.by_ra for route in here)
    walls = firewall.gather(
        above,
        advertised,
        rules,
        port=name if above != name else "",
        bridged=_is_bridge(above),
    )
    yield Section("firewall", firewall.judge(walls))
    exporter = exposure.gather(trees, name, above, addresses, walls.ruleset, walls.legacy)
    yield Section("exporter", exposure.judge(exporter) if exporter else [])
    running = containers.gather(name, addresses, table, docker_socket)
    yield Section("containers", containers.judge(running) if running else [])
    docker = None
    if running and running.endpoints is not None:  # else it is silent, and was waited for once
        docker = engine.gather(above, addresses, gateways, docker_socket)
    yield Section("engine", engine.judge(docker) if docker else [])
    yield Section("limits", limits.judge(limits.gather(rules)))


def _examine_quiet(
    trees: Trees,
    link: Link,
    by_interface: dict[str, list[DefaultRoute]],
    addresses: list[OwnAddress],
    docker_socket: str,
    *,
    sending: bool,
) -> Iterator[Section]:
    """Look at an interface without a MAC address: what is about solicitations is left out.

    sending: --probe or --watch was given.
    """
    name = link.name
    here = by_interface.get(name, [])
    gateways = sorted({route.gateway for route in here if route.gateway})
    has_global = any(not own.link_local for own in addresses)
    managed = manager.gather(name, link.ifindex)

    about = [note(f"ndxdp has nothing to answer on {name}: {netlink.NO_MAC}")]
    if sending:
        about.append(unseen("what --probe and --watch look at: solicitations and their answers"))
    yield Section("link", about)
    yield Section("manager", manager.judge(name, managed))
    passing = forwarding.gather(name, by_interface, has_global, managed, quiet=True)
    yield Section("forwarding", forwarding.judge(passing))
    known = [
        note(f"gateway {socket.inet_ntop(socket.AF_INET6, each)}: needs no MAC on {name}")
        for each in gateways
    ]
    yield Section("gateway", known)
    yield Section("source", source.judge(source.gather(name, link.ifindex, here, addresses)))
    advertised = any(route.by_ra for route in here)
    walls = firewall.gather(name, advertised, Rules(), quiet=True)
    yield Section("firewall", firewall.judge(walls))
    exporter = exposure.gather(trees, name, name, addresses, walls.ruleset, walls.legacy)
    yield Section("exporter", exposure.judge(exporter) if exporter else [])
    docker = engine.gather(name, addresses, gateways, docker_socket)
    yield Section("engine", engine.judge(docker) if docker else [])
    yield Section("limits", limits.judge(limits.gather(Rules())))
