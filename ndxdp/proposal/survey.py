"""Survey of this host: uplinks, networks behind the host, sysctls, and other responders.

The survey reads what doctor reads. It changes nothing and sends nothing.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from ndxdp.doctor import engine, forwarding, interfaces, listeners, share_case
from ndxdp.doctor.finding import reason_of
from ndxdp.doctor.subject import Subject
from ndxdp.errors import NdxdpError
from ndxdp.netlink import links, onlink, sysctl
from ndxdp.netlink.addresses import FOREVER
from ndxdp.netlink.fib import Fib, NudState
from ndxdp.observe import status
from ndxdp.proposal.facts import ContainerNetwork, Daemon, Host, Responder, Uplink, Way
from ndxdp.rules.prefix import Prefix
from ndxdp.sources.http import NoAnswer
from ndxdp.sources.selector import ENGINE_SOCKET
from ndxdp.store.directories import Trees

log = logging.getLogger(__name__)

PODMAN_SOCKET = "/run/podman/podman.sock"

_SYSCTL_FOLDERS = tuple(
    map(Path, ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d"))
)
_SYSCTL_LAST = Path("/etc/sysctl.conf")

_GUESTS_MAX = 64  # interfaces whose neighbours are read


def look(names: Iterable[str], trees: Trees, docker_socket: str = "") -> Host:
    """Survey this host.

    Args:
        names: The uplinks; none for those of the IPv6 default routes.
        trees: The directories of pins and files.
        docker_socket: The path of the engine's socket; "" for Docker's or else Podman's.

    Raises:
        NdxdpError: There is no such interface, no IPv6, or no default route that shows the uplink.
    """
    if sysctl.read("net", "ipv6", "conf", "all", "forwarding") is None:
        if not forwarding.has_ipv6():
            raise NdxdpError("this kernel has no IPv6", "to see why: ndxdp doctor")
        raise NdxdpError("cannot read /proc/sys/net/ipv6", "is /proc mounted?")
    routes = interfaces.default_routes()
    chosen = list(dict.fromkeys(names)) or sorted(routes)
    if not chosen:
        raise _no_uplink()
    found = [links.any_link(name) for name in chosen]
    named = {link.l3_ifindex for link in found}
    rest = [link for link in map(links.find_link, routes) if link and link.ifindex not in named]
    indexes = {index for link in (*found, *rest) for index in (link.ifindex, link.l3_ifindex)}
    subjects, others = (
        [Subject(link, trees, quiet=not links.has_mac(link)) for link in some]
        for some in (found, rest)
    )
    daemons = tuple(Daemon(each.pid, each.config or "") for each in status.reports(trees))
    heard, unseen = _heard(subjects, {daemon.pid for daemon in daemons})
    path = docker_socket or _engine_socket()
    networks, unknown = _networks(path)
    if docker_socket and not os.path.exists(docker_socket):
        unknown = f"there is no {docker_socket}"
    with Fib() as fib:
        ways = _ways(fib, frozenset(indexes))
        local = tuple(sorted(each for each in fib.local_prefixes() if each.length < 128))
    return Host(
        tuple(_uplink(subject, heard.get(subject.name)) for subject in subjects),
        ways,
        networks,
        path if os.path.exists(path) else "",
        unknown,
        local,
        bool(sysctl.conf("all", "forwarding")),
        _responders(heard.values()),
        unseen,
        tuple(_uplink(subject, None) for subject in others),
        daemons,
        tuple(_sysctl_files()),
        share_case.gather(indexes),
    )


def _no_uplink() -> NdxdpError:
    if sysctl.conf("all", "disable_ipv6"):
        return NdxdpError("IPv6 is disabled on this host", "to see why: ndxdp doctor")
    return NdxdpError(
        "there is no IPv6 default route, so the uplink is not known",
        "if there should be one: ndxdp doctor; to name the uplink: ndxdp init IFACE",
    )


# ---- uplinks ------------------------------------------------------------------------------------


def _uplink(subject: Subject, heard: listeners.Facts | None) -> Uplink:
    routes, above = subject.own_routes, subject.above
    own = [each for each in subject.addresses if not each.link_local]
    on_link = onlink.read((subject.link.ifindex, subject.ifindex)).prefixes
    return Uplink(
        subject.name,
        subject.link.kind,
        quiet=subject.quiet,
        up=subject.link.up,
        is_default=bool(routes),
        gateways=tuple(sorted(set(subject.gateways))),
        on_link=tuple(sorted(on_link)),
        addresses=tuple(sorted(each.address for each in own)),
        disabled=bool(sysctl.conf(above, "disable_ipv6")),
        above=above,
        forwarding=bool(sysctl.conf(above, "forwarding")),
        accept_ra=sysctl.conf(above, "accept_ra"),
        advertised=any(route.by_ra for route in routes)
        or any(each.valid != FOREVER for each in own),
        manager=subject.managed.name if subject.managed else "",
        manager_file=subject.managed.file if subject.managed else "",
        attached=_is_attached(subject),
        proxied=heard.proxied if heard else (),
    )


def _is_attached(subject: Subject) -> bool:
    try:
        return subject.trees.have(subject.name)
    except (NdxdpError, OSError) as error:  # for example, without rights
        log.debug("%s: %r", subject.name, error)
        return False


def _heard(
    subjects: Iterable[Subject], daemons: set[int]
) -> tuple[dict[str, listeners.Facts], tuple[str, ...]]:
    """Return the listeners on each uplink, and a sentence for each that could not be examined."""
    found: dict[str, listeners.Facts] = {}
    unseen: list[str] = []
    for subject in subjects:
        try:
            facts = listeners.gather(subject.above, subject.ifindex, None, daemons)
        except OSError as error:
            unseen.append(f"other responders on {subject.name}: {reason_of(error)}")
            continue
        found[subject.name] = facts
        if facts.unproxied:
            unseen.append(f"proxy_ndp entries on {subject.name}: {facts.unproxied}")
        if facts.unknown:
            unseen.append(f"{facts.unknown} ICMPv6 sockets, whose processes only root sees")
    return found, tuple(dict.fromkeys(unseen))


def _responders(heard: Iterable[listeners.Facts]) -> tuple[Responder, ...]:
    found = {
        each.pid: Responder(each.pid, each.name, each.unit)
        for facts in heard
        for each in facts.listeners
        if each.name in listeners.RESPONDERS
    }
    return tuple(found[pid] for pid in sorted(found))


def _sysctl_files() -> Iterator[tuple[str, str]]:
    """Yield path and text of the files of sysctls in their order, without masked ones."""
    by_name: dict[str, Path] = {}
    for folder in _SYSCTL_FOLDERS:
        for path in folder.glob("*.conf"):
            by_name.setdefault(path.name, path)
    for path in (*(by_name[name] for name in sorted(by_name)), _SYSCTL_LAST):
        try:
            yield str(path), path.read_text(errors="replace")
        except OSError:  # there is none
            continue


# ---- networks behind the host -------------------------------------------------------------------


def _ways(fib: Fib, uplinks: frozenset[int]) -> tuple[Way, ...]:
    """Return the routes that leave by other interfaces than the uplinks, without duplicates."""
    found: dict[tuple[Prefix, str], Way] = {}
    known: dict[int, links.Link | None] = {}
    guests: dict[int, _Guests] = {}
    for route in onlink.routes_behind(uplinks):
        if route.learned:  # a share finds the host again
            continue
        if route.ifindex not in known:
            known[route.ifindex] = _link(route.ifindex)
        link = known[route.ifindex]
        if link is None or link.name == "lo":
            continue
        if route.ifindex not in guests:
            read = len(guests) < _GUESTS_MAX
            guests[route.ifindex] = _Guests(_neighbours(fib, link) if read else [])
        direct = route.direct and links.has_mac(link)
        guest = guests[route.ifindex].first(route.prefix)
        way = Way(route.prefix, link.name, link.kind, direct, guest)
        found.setdefault((way.prefix, way.dev), way)
    return tuple(found.values())


def _link(ifindex: int) -> links.Link | None:
    try:
        return links.find_link(socket.if_indextoname(ifindex))
    except OSError:  # the interface was deleted
        return None


class _Guests:
    """The living guests on an interface, by the prefixes that contain them."""

    def __init__(self, addresses: list[bytes]) -> None:
        self._addresses = addresses
        self._by_length: dict[int, dict[Prefix, bytes]] = {}

    def first(self, prefix: Prefix) -> bytes | None:
        """Return the lowest address in a prefix; None if there is none."""
        length = prefix.length
        if length not in self._by_length:
            self._by_length[length] = {
                Prefix.around(each, length): each for each in reversed(self._addresses)
            }
        return self._by_length[length].get(prefix)


def _neighbours(fib: Fib, link: links.Link) -> list[bytes]:
    """Return the addresses of the live neighbours on an interface."""
    return sorted(
        each.address
        for each in fib.neighbours(link.ifindex)
        if each.mac and each.state.is_valid and each.state is not NudState.NOARP
    )


def _engine_socket() -> str:
    """Return the path of Podman's socket if there is one and none of Docker, else Docker's."""
    if not os.path.exists(ENGINE_SOCKET) and Path(PODMAN_SOCKET).is_socket():
        return PODMAN_SOCKET
    return ENGINE_SOCKET


def _networks(path: str) -> tuple[tuple[ContainerNetwork, ...], str]:
    """Return the engine's networks, and why they are not known."""
    if not os.path.exists(path):
        return (), ""
    if not os.access(path, os.W_OK):
        return (), f"{path}: permission denied"
    try:
        found = engine.list_networks(path)
    except (NoAnswer, TimeoutError, ValueError) as error:
        log.debug("%s: %r", path, error)
        return (), f"{path}: the engine does not answer"
    return tuple(
        ContainerNetwork(each.name, each.subnets, each.driver, each.internal, each.addresses)
        for each in found
    ), ""
