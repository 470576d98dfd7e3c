"""All checks of an interface, in the order in which a packet meets what they are about.

Each check stands alone: where one cannot be made, a finding says so, and the others go on.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ndxdp.doctor import (
    anyip,
    arrival,
    breadth,
    containers,
    daemon,
    engine,
    exposure,
    firewall,
    forwarding,
    gateway,
    limits,
    listeners,
    manager,
    missing,
    probe,
    program,
    reception,
    source,
)
from ndxdp.doctor.finding import Finding, cannot_look, failure, note, reason_of, unseen, warning
from ndxdp.errors import NdxdpError, UsageError
from ndxdp.ndp.profile import Answer
from ndxdp.netlink import links
from ndxdp.netlink.addresses import OwnAddress, own_addresses
from ndxdp.netlink.fib import DefaultRoute, Fib
from ndxdp.netlink.links import Link
from ndxdp.observe import status
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.rules.table import Table
from ndxdp.store import lifetimes
from ndxdp.store.directories import Trees

log = logging.getLogger(__name__)

_IPV4_ROUTES = Path("/proc/thread-self/net/route")

_UPLINKS = 4  # links to look at where nothing says which is meant

_SOURCES = 4  # addresses behind the host from which a gateway is asked, half a second each


class Section(NamedTuple):
    """The findings of one check; none where all is well."""

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

    Those that ndxdp has something of; if none of them is there, those of default routes, too;
    without any, all Ethernet links that are up.

    Raises:
        NdxdpError: There is none.
    """
    try:
        ours = status.interfaces(trees)
    except (NdxdpError, OSError) as error:  # no BPF file system, say
        log.debug("cannot list what ndxdp works on: %s", error)
        ours = []
    try:
        reported = [each["interface"] for one in status.reports(trees) for each in one.interfaces]
    except OSError as error:  # no /proc
        log.debug("cannot list what daemons attend to: %s", error)
        reported = []
    ours += [name for name in reported if name not in ours]
    found = list(ours)
    if not any(_exists(name) for name in ours):
        # A tunnel may be the way out, too; it comes last, as nobody solicits there.
        others = sorted(_of_routes(), key=_is_quiet) or _uplinks()
        found += [name for name in others if name not in ours]
    if not found:
        raise NdxdpError(
            "no interface with a MAC address is up, nor does ndxdp answer on any",
            "ndxdp doctor IFACE",
        )
    return found


def _uplinks() -> list[str]:
    """Return the Ethernet links that are up, without a bridge's or bond's ports; bridges, which
    mostly lead to containers, only if there is nothing else."""
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
    return (ends or [link.name for link in candidates])[:_UPLINKS]


def _of_routes() -> list[str]:
    """Return the interfaces of IPv6 default routes; of IPv4 ones where there are none."""
    try:
        found = sorted(routes())
    except OSError as error:  # no netlink, or no IPv6
        log.debug("cannot read the IPv6 routes: %s", error)
        found = []
    return found or _of_ipv4()


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _is_quiet(name: str) -> bool:
    try:
        return links.is_quiet(name)
    except NdxdpError as error:  # no netlink: look at it all the same
        log.debug("cannot look at %s: %s", name, error)
        return False


def _of_ipv4() -> list[str]:
    """The interfaces of IPv4 default routes: their destination is zero, and so is the mask."""
    try:
        lines = [line.split() for line in _IPV4_ROUTES.read_text().splitlines()[1:]]
    except OSError:
        return []
    zero = "00000000"
    return sorted({line[0] for line in lines if (line[1], line[7]) == (zero, zero)})


def _section(check: str, subject: str, look: Callable[[], list[Finding]]) -> Section:
    """Make one check. An exception in it becomes a finding, so that the others go on."""
    try:
        return Section(check, look())
    except Exception as error:
        log.debug("%s:", check, exc_info=error)
        return Section(check, [cannot_look(subject, error)])


def examine(
    name: str, trees: Trees, docker_socket: str, *, probing: bool = False, watching: float = 0
) -> Iterator[Section]:
    """Look at an interface.

    Where it has no MAC address, what is about solicitations is left out.

    Args:
        probing: Send solicitations.
        watching: Seconds to look at what comes, where ndxdp answers.

    Raises:
        NdxdpError: There is no such interface, and ndxdp has nothing of it; or it has no MAC.
    """
    unreadable: list[Finding] = []
    try:
        link = links.find_link(name)
    except UsageError:
        raise
    except NdxdpError as error:
        unreadable = [cannot_look(f"the link {name}", error)]
        link = _by_name(name)
    if link is None:
        gone = missing.gather(trees, name)
        if gone is None:
            links.any_link(name)  # raises
            return
        yield Section("link", missing.judge(gone))
        yield _section("limits", "the limits", lambda: limits.judge(limits.gather(Rules())))
        return
    if not unreadable:
        link = links.any_link(name)
    if not link.up:
        down = failure(
            f"{name} is down", "nothing comes in or goes out there", f"ip link set dev {name} up"
        )
        yield Section("link", [down])
    elif unreadable:
        yield Section("link", unreadable)
    quiet = not unreadable and not links.has_mac(link)
    examination = _Examination(link, trees, docker_socket, quiet=quiet)
    yield from examination.sections(probing, watching)
    if not _exists(name):
        went = warning(
            f"{name} went away while doctor looked at it",
            "what is said of it may not be true any more: look again once it is back",
            "ip -br link",
        )
        yield Section("link", [went])


def _by_name(name: str) -> Link | None:
    """Return what is known of an interface without netlink; None if it does not exist."""
    try:
        ifindex = socket.if_nametoindex(name)
    except OSError:
        return None
    return Link(ifindex, name, b"", "", True, True, False, l3_ifindex=ifindex)


class _Examination:
    """The checks of one interface, and what several of them read.

    What is read once and fails raises again for each check that needs it.
    """

    def __init__(self, link: Link, trees: Trees, docker_socket: str, *, quiet: bool) -> None:
        """quiet: the interface has no MAC address, so that nobody solicits there."""
        self.link = link
        self.quiet = quiet
        self.name = link.name
        self.trees = trees
        self.docker_socket = docker_socket
        self.engine_answers = False  # a silent one is not waited for twice
        # A port's addresses, routes and sysctls are its bridge's.
        self.ifindex = link.l3_ifindex
        self.above = self.name
        if self.ifindex != link.ifindex:
            try:
                self.above = socket.if_indextoname(self.ifindex)
            except OSError:  # the bridge has just gone
                self.ifindex = link.ifindex

    def sections(self, probing: bool, watching: float) -> Iterator[Section]:
        """Make all checks; of a link that is down those that do not need it up."""
        name, above = self.name, self.above
        if self.quiet:
            yield from self._quiet_sections(sending=probing or bool(watching))
            return
        yield _section("manager", f"who configures {above}", self._manager)
        yield from self._forwarding()
        if self.link.up:
            yield from self._neighbours(probing)
        yield _section("daemon", "what the daemon reports", self._daemon)
        yield _section("program", f"what answers on {name}", lambda: program.judge(self.program))
        yield _section("breadth", "how wide the rules are", self._breadth)
        if self.link.up and watching:
            yield _section("arrival", "whether answers arrive", lambda: self._arrival(watching))
        yield _section("listeners", "who else listens", self._listeners)
        yield _section("firewall", "the firewall", lambda: firewall.judge(self.walls))
        yield _section("exporter", "who reaches the exporter", self._exporter)
        yield _section("containers", "the containers", self._containers)
        yield _section("engine", "Docker's networks", self._engine)
        yield _section(
            "limits", "the limits", lambda: limits.judge(limits.gather(self.known_rules))
        )

    # ---- what several checks read

    @cached_property
    def routes(self) -> dict[str, list[DefaultRoute]]:
        return routes()

    @property
    def here(self) -> list[DefaultRoute]:
        return self.routes.get(self.above, [])

    @property
    def gateways(self) -> list[bytes]:
        return [route.gateway for route in self.here if route.gateway]

    @cached_property
    def addresses(self) -> list[OwnAddress]:
        return own_addresses(self.ifindex)

    @cached_property
    def managed(self) -> manager.Manager | None:
        return manager.gather(self.above, self.ifindex)

    @cached_property
    def program(self) -> program.Facts:
        return program.gather(self.trees, self.link)

    @cached_property
    def table(self) -> Table | None:
        """The rules; None where ndxdp answers nothing. NdxdpError where they cannot be read."""
        if self.program.trouble is not None:
            raise self.program.trouble
        return self.program.answering.table if self.program.answering else None

    @property
    def known_rules(self) -> Rules:
        """The rules, none where they cannot be read: the check of the program says that."""
        if self.quiet:
            return Rules()
        try:
            answering = self.program.answering
        except Exception as error:
            log.debug("program:", exc_info=error)
            return Rules()
        return answering.rules if answering else Rules()

    @cached_property
    def delivery(self) -> anyip.Delivery:
        return anyip.gather(self.known_rules, self.ifindex)

    @property
    def _is_bridge(self) -> bool:
        if self.above == self.name:
            return self.link.kind == "bridge"
        above = links.find_link(self.above)
        return above is not None and above.kind == "bridge"

    @cached_property
    def walls(self) -> firewall.Facts:
        try:
            advertised = any(route.by_ra for route in self.here)
        except OSError:  # the routes are not known
            advertised = False
        # What ends at this host is not forwarded.
        delivered = Rules.of(dict.fromkeys(self.delivery.here, Rule()))
        return firewall.gather(
            self.above,
            advertised,
            self.known_rules.without(delivered),
            port=self.name if self.above != self.name else "",
            bridged=self._is_bridge,
            quiet=self.quiet,
        )

    # ---- the checks

    def _manager(self) -> list[Finding]:
        return manager.judge(self.above, self.managed)

    def _forwarding(self) -> Iterator[Section]:
        unread: list[Finding] = []
        by_interface = None
        has_global = True
        if self.link.up:
            try:
                by_interface = self.routes
                has_global = any(not own.link_local for own in self.addresses)
            except Exception as error:
                unread = [cannot_look("the default routes and addresses", error)]

        def look() -> list[Finding]:
            try:
                managed = self.managed
            except Exception:  # that check has said so
                managed = None
            facts = forwarding.gather(
                self.above,
                by_interface,
                has_global,
                managed,
                self.delivery,
                quiet=self.quiet,
            )
            return forwarding.judge(facts)

        section = _section("forwarding", "forwarding", look)
        yield Section("forwarding", [*unread, *section.findings])

    def _neighbours(self, probing: bool) -> Iterator[Section]:
        """The gateways, and by which address they are asked."""
        asked: list[probe.Facts] = []

        def ask() -> list[Finding]:
            asked.append(self._probe())
            return probe.judge(asked[0])

        # What a probe finds is said below what the kernel knows of the gateways.
        probed = _section("probe", "what routers say", ask) if probing else None

        def gateways() -> list[Finding]:
            heard = asked[0] if asked else None
            known = gateway.gather(
                self.above, self.ifindex, self.here, self.addresses, heard, self.name
            )
            return gateway.judge(known)

        yield _section("gateway", "the gateways", gateways)
        if probed is not None:
            yield probed
        yield _section("source", "the addresses", self._source)
        yield _section("reception", "whether solicitations come in", self._reception)

    def _probe(self) -> probe.Facts:
        asking = links.answering_link(self.above) if self.above != self.name else self.link
        behind = self.known_rules.where(lambda rule: rule.answer is not Answer.NEVER)
        exact = islice(behind.addresses, _SOURCES)
        sources = [*(own.address for own in self.addresses), *exact]
        return probe.gather(asking, sorted(set(self.gateways)), sorted(behind.wider), sources)

    def _source(self) -> list[Finding]:
        above = links.find_link(self.above) if self.above != self.name else self.link
        mac = above.mac if above else b""
        kept = frozenset(
            address
            for each in lifetimes.kept(self.trees.files.root)
            if each.running and each.interface == self.name
            for address in each.deprecated
        )
        facts = source.gather(self.above, self.ifindex, self.here, self.addresses, mac, kept)
        return source.judge(facts)

    def _reception(self) -> list[Finding]:
        answering = self.program.answering
        attached = bool(answering and answering.attached)
        return reception.judge(reception.gather(self.name, self.link.ifindex, attached))

    def _arrival(self, seconds: float) -> list[Finding]:
        answering = self.program.answering
        if answering is None or not answering.attached:
            return [
                unseen(f"cannot tell whether answers arrive: ndxdp answers nothing on {self.name}")
            ]
        seen = arrival.gather(self.trees, self.link, answering.table, self.addresses, seconds)
        return arrival.judge(seen)

    def _breadth(self) -> list[Finding]:
        ifindexes = (self.link.ifindex, self.ifindex)
        return breadth.judge(breadth.gather(self.name, ifindexes, self.known_rules))

    def _listeners(self) -> list[Finding]:
        try:
            table = self.table
        except Exception:  # the check of the program says why
            table = None
        return listeners.judge(listeners.gather(self.above, self.ifindex, table))

    def _exporter(self) -> list[Finding]:
        try:
            ruleset, legacy = self.walls.ruleset, self.walls.legacy
        except Exception:  # that check has said so
            ruleset, legacy = None, False
        facts = exposure.gather(self.trees, self.name, self.above, self.addresses, ruleset, legacy)
        return exposure.judge(facts) if facts else []

    def _daemon(self) -> list[Finding]:
        return daemon.judge(daemon.gather(self.trees, self.name))

    def _containers(self) -> list[Finding]:
        try:
            table, unknown = self.table, ""
        except Exception as error:
            table, unknown = None, reason_of(error)
        running = containers.gather(self.name, self.addresses, table, self.docker_socket)
        if running is None:
            return []
        self.engine_answers = running.endpoints is not None
        if unknown and running.endpoints:
            return [unseen(f"cannot tell which containers ndxdp answers for: {unknown}")]
        return containers.judge(running)

    def _engine(self) -> list[Finding]:
        if not self.engine_answers:
            return []
        facts = engine.gather(self.above, self.addresses, self.gateways, self.docker_socket)
        return engine.judge(facts) if facts else []

    # ---- where nobody solicits

    def _quiet_sections(self, *, sending: bool) -> Iterator[Section]:
        """Make the checks of an interface without a MAC address: none is about solicitations.

        Args:
            sending: --probe or --watch was given.
        """
        name = self.name
        about = [note(f"ndxdp has nothing to answer on {name}: {links.NO_MAC}")]
        if sending:
            text = "cannot look at what --probe and --watch show: solicitations and their answers"
            about.append(unseen(text))
        yield Section("link", about)
        yield _section("daemon", "what the daemon reports", self._daemon)
        yield _section("manager", f"who configures {name}", self._manager)
        yield from self._forwarding()
        yield _section("gateway", "the gateways", self._quiet_gateways)
        yield _section("source", "the addresses", self._source)
        yield _section("firewall", "the firewall", lambda: firewall.judge(self.walls))
        yield _section("exporter", "who reaches the exporter", self._exporter)
        self.engine_answers = True
        yield _section("engine", "Docker's networks", self._engine)
        yield _section("limits", "the limits", lambda: limits.judge(limits.gather(Rules())))

    def _quiet_gateways(self) -> list[Finding]:
        return [
            note(f"gateway {socket.inet_ntop(socket.AF_INET6, each)}: needs no MAC on {self.name}")
            for each in sorted(set(self.gateways))
        ]
