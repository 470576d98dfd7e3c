"""All checks of an interface, in the order in which a packet passes what they examine.

Checks are independent: if one fails with an error, a finding reports that, and the others go on.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from ndxdp.doctor import (
    arrival,
    breadth,
    clock,
    containers,
    daemon,
    engine,
    etcd,
    exposure,
    firewall,
    fleet,
    forwarding,
    gateway,
    limits,
    listeners,
    manager,
    missing,
    probe,
    program,
    reception,
    share_examination,
    source,
)
from ndxdp.doctor.finding import Finding, cannot_check, failure, note, reason_of, unseen, warning
from ndxdp.doctor.interfaces import exists
from ndxdp.doctor.subject import Subject
from ndxdp.errors import NdxdpError, UsageError
from ndxdp.ndp.profile import Answer
from ndxdp.netlink import links
from ndxdp.netlink.links import Link
from ndxdp.observe import status
from ndxdp.rules.address import address_text
from ndxdp.rules.ruleset import Rules
from ndxdp.sources.answers import Endpoint
from ndxdp.store import lifetimes
from ndxdp.store.directories import Trees

log = logging.getLogger(__name__)

_SOURCES_MAX = 4  # addresses behind the host from which a gateway is solicited, half a second each


class Section(NamedTuple):
    """Findings of one check; none if all is well."""

    check: str
    findings: list[Finding]


def _section(check: str, about: str, find: Callable[[], list[Finding]]) -> Section:
    """Make one check; an exception in it becomes a finding.

    Args:
        check: The name of the check.
        about: What the check examines, for the finding.
        find: The check.
    """
    try:
        return Section(check, find())
    except Exception as error:
        log.debug("%s:", check, exc_info=error)
        return Section(check, [cannot_check(about, error)])


def examine(
    name: str, trees: Trees, docker_socket: str, *, probing: bool = False, watching: float = 0
) -> Iterator[Section]:
    """Make all checks of an interface.

    On an interface without a MAC address, the checks of solicitations are skipped.

    Args:
        name: The name of the interface.
        trees: The directories of pins and files.
        docker_socket: The path of Docker's or Podman's socket.
        probing: Send solicitations.
        watching: Seconds to watch whether answers arrive, if ndxdp answers.

    Raises:
        NdxdpError: There is no such interface, and ndxdp has no pins or files of it.
    """
    unreadable: list[Finding] = []
    try:
        link = links.find_link(name)
    except UsageError:
        raise
    except NdxdpError as error:
        unreadable = [cannot_check(f"the link {name}", error)]
        link = _by_name(name)
    if link is None:
        remains = missing.gather(trees, name)
        if remains is None:
            links.any_link(name)  # raises
            return
        yield Section("link", missing.judge(remains))
        yield _section("limits", "the limits", lambda: limits.judge(limits.gather(Rules())))
        return
    if not unreadable:
        link = links.any_link(name)
    if not link.up:
        down = failure(
            f"{name} is down",
            "the interface neither receives nor sends",
            f"ip link set dev {name} up",
        )
        yield Section("link", [down])
    elif unreadable:
        yield Section("link", unreadable)
    quiet = not unreadable and not links.has_mac(link)
    examination = _Examination(Subject(link, trees, quiet=quiet), docker_socket)
    yield from examination.sections(probing, watching)
    if not exists(name):
        deleted = warning(
            f"{name} was deleted during the examination",
            "the findings may be outdated: run doctor again when the interface exists",
            "ip -br link",
        )
        yield Section("link", [deleted])


def _by_name(name: str) -> Link | None:
    """Return the link as far as it is known without netlink; None if it does not exist."""
    try:
        ifindex = socket.if_nametoindex(name)
    except OSError:
        return None
    return Link(ifindex, name, b"", "", True, True, False, l3_ifindex=ifindex)


class _Examination:
    """Checks of one interface."""

    def __init__(self, subject: Subject, docker_socket: str) -> None:
        self._subject = subject
        self._docker_socket = docker_socket
        # A second request would wait for a silent engine, or member of etcd, again.
        self._engine_answers = False
        self._endpoints: frozenset[Endpoint] = frozenset()
        self._members: etcd.Facts | None = None

    def sections(self, probing: bool, watching: float) -> Iterator[Section]:
        """Make all checks; skip those that need the link up if it is down."""
        subject = self._subject
        name, above = subject.name, subject.above
        if subject.quiet:
            yield from self._quiet_sections(sending=probing or bool(watching))
            return
        yield _section("manager", f"which program configures {above}", self._manager)
        yield from self._forwarding()
        if subject.link.up:
            yield from self._neighbours(probing)
        yield _section("daemon", "the daemon's report", self._daemon)
        yield _section("program", f"ndxdp on {name}", lambda: program.judge(subject.program))
        yield _section("breadth", "how broad the rules are", self._breadth)
        yield _section("share", "the share", lambda: self._share(probing=probing))
        if subject.link.up and watching:
            yield _section("arrival", "whether answers arrive", lambda: self._arrival(watching))
        yield _section("listeners", "other listeners", self._listeners)
        yield _section("firewall", "the firewall", lambda: firewall.judge(subject.firewall))
        yield _section("exporter", "access to the exporter", self._exporter)
        yield _section("containers", "the containers", self._containers)
        yield _section("etcd", "etcd", self._etcd)
        yield _section("fleet", "the shared addresses", self._fleet)
        yield _section("engine", "Docker's networks", self._engine)
        yield _section(
            "limits", "the limits", lambda: limits.judge(limits.gather(subject.known_rules))
        )

    def _manager(self) -> list[Finding]:
        return manager.judge(self._subject.above, self._subject.managed)

    def _forwarding(self) -> Iterator[Section]:
        subject = self._subject
        unread: list[Finding] = []
        by_interface = None
        has_global = True
        if subject.link.up:
            try:
                by_interface = subject.routes
                has_global = any(not own.link_local for own in subject.addresses)
            except Exception as error:
                unread = [cannot_check("the default routes and addresses", error)]

        def find() -> list[Finding]:
            try:
                managed = subject.managed
            except Exception:  # the check of the manager reports the error
                managed = None
            facts = forwarding.gather(
                subject.above,
                by_interface,
                has_global,
                managed,
                subject.delivery,
                quiet=subject.quiet,
            )
            return forwarding.judge(facts)

        section = _section("forwarding", "forwarding", find)
        yield Section("forwarding", [*unread, *section.findings])

    def _neighbours(self, probing: bool) -> Iterator[Section]:
        """Check the gateways and routers, the source addresses, and the reception."""
        subject = self._subject
        probes: list[probe.Facts] = []

        def probe_routers() -> list[Finding]:
            probes.append(self._probe())
            return probe.judge(probes[0])

        # The gateways' check needs the result, and its findings come first.
        probed = _section("probe", "the routers", probe_routers) if probing else None

        def gateways() -> list[Finding]:
            known = gateway.gather(
                subject.above,
                subject.ifindex,
                subject.own_routes,
                subject.addresses,
                probes[0] if probes else None,
                subject.name,
            )
            return gateway.judge(known)

        yield _section("gateway", "the gateways", gateways)
        if probed is not None:
            yield probed
        yield _section("source", "the addresses", self._source)
        yield _section("reception", "the reception of solicitations", self._reception)

    def _probe(self) -> probe.Facts:
        subject = self._subject
        is_port = subject.above != subject.name
        asking = links.answering_link(subject.above) if is_port else subject.link
        behind = subject.known_rules.where(lambda rule: rule.answer is not Answer.NEVER)
        exact = islice(behind.addresses, _SOURCES_MAX)
        sources = [*(own.address for own in subject.addresses), *exact]
        return probe.gather(asking, sorted(set(subject.gateways)), sorted(behind.wider), sources)

    def _source(self) -> list[Finding]:
        subject = self._subject
        is_port = subject.above != subject.name
        above = links.find_link(subject.above) if is_port else subject.link
        mac = above.mac if above else b""
        kept = frozenset(
            address
            for each in lifetimes.kept(subject.trees.files.root)
            if each.running and each.interface == subject.name
            for address in each.deprecated
        )
        facts = source.gather(
            subject.above, subject.ifindex, subject.own_routes, subject.addresses, mac, kept
        )
        return source.judge(facts)

    def _reception(self) -> list[Finding]:
        subject = self._subject
        answering = subject.program.answering
        attached = bool(answering and answering.attached)
        return reception.judge(reception.gather(subject.name, subject.link.ifindex, attached))

    def _arrival(self, seconds: float) -> list[Finding]:
        subject = self._subject
        answering = subject.program.answering
        if answering is None or not answering.attached:
            return [
                unseen(
                    f"cannot check whether answers arrive: ndxdp answers nothing on {subject.name}"
                )
            ]
        seen = arrival.gather(
            subject.trees, subject.link, answering.table, subject.addresses, seconds
        )
        return arrival.judge(seen)

    def _breadth(self) -> list[Finding]:
        subject = self._subject
        ifindexes = (subject.link.ifindex, subject.ifindex)
        return breadth.judge(breadth.gather(subject.name, ifindexes, subject.known_rules))

    def _share(self, *, probing: bool) -> list[Finding]:
        return share_examination.examine(self._subject, probing=probing)

    def _listeners(self) -> list[Finding]:
        subject = self._subject
        try:
            table = subject.table
        except Exception:  # the check of the program reports the error
            table = None
        daemons = {daemon.pid for daemon in status.reports(subject.trees)}
        facts = listeners.gather(subject.above, subject.ifindex, table, daemons)
        return listeners.judge(facts)

    def _exporter(self) -> list[Finding]:
        subject = self._subject
        try:
            ruleset, legacy = subject.firewall.ruleset, subject.firewall.legacy
        except Exception:  # the check of the firewall reports the error
            ruleset, legacy = None, False
        facts = exposure.gather(
            subject.trees, subject.name, subject.above, subject.addresses, ruleset, legacy
        )
        return exposure.judge(facts) if facts else []

    def _daemon(self) -> list[Finding]:
        return daemon.judge(daemon.gather(self._subject.trees, self._subject.name))

    def _containers(self) -> list[Finding]:
        subject = self._subject
        try:
            table, unknown = subject.table, ""
        except Exception as error:
            table, unknown = None, reason_of(error)
        running = containers.gather(subject.name, subject.addresses, table, self._docker_socket)
        if running is None:
            return []
        self._engine_answers = running.endpoints is not None
        self._endpoints = running.endpoints or frozenset()
        if unknown and running.endpoints:
            return [unseen(f"cannot check for which containers ndxdp answers: {unknown}")]
        return containers.judge(running)

    def _etcd(self) -> list[Finding]:
        self._members = etcd.gather(self._subject.trees, self._subject.name)
        return etcd.judge(self._members) if self._members else []

    def _fleet(self) -> list[Finding]:
        facts = fleet.gather(self._subject, self._members, self._endpoints)
        if facts is None:
            return []
        of_clock = clock.judge(clock.gather(), facts.lease) if facts.entries else []
        return [*fleet.judge(facts), *of_clock]

    def _engine(self) -> list[Finding]:
        subject = self._subject
        if not self._engine_answers:
            return []
        facts = engine.gather(
            subject.above, subject.addresses, subject.gateways, self._docker_socket
        )
        return engine.judge(facts) if facts else []

    # ---- interfaces on which no node solicits

    def _quiet_sections(self, *, sending: bool) -> Iterator[Section]:
        """Make the checks of an interface without a MAC address, which concern no solicitations.

        Args:
            sending: The command has --probe or --watch.
        """
        name = self._subject.name
        about = [note(f"ndxdp has nothing to answer on {name}: {links.NO_MAC}")]
        if sending:
            text = "cannot check solicitations and their answers, as --probe and --watch do"
            about.append(unseen(text))
        yield Section("link", about)
        yield _section("daemon", "the daemon's report", self._daemon)
        yield _section("manager", f"which program configures {name}", self._manager)
        yield from self._forwarding()
        yield _section("gateway", "the gateways", self._quiet_gateways)
        yield _section("source", "the addresses", self._source)
        yield _section("firewall", "the firewall", lambda: firewall.judge(self._subject.firewall))
        yield _section("exporter", "access to the exporter", self._exporter)
        yield _section("share", "the share", lambda: self._share(probing=False))
        self._engine_answers = True
        yield _section("engine", "Docker's networks", self._engine)
        yield _section("limits", "the limits", lambda: limits.judge(limits.gather(Rules())))

    def _quiet_gateways(self) -> list[Finding]:
        name = self._subject.name
        gateways = sorted(set(self._subject.gateways))
        texts = [address_text(each) for each in gateways]
        return [note(f"gateway {text}: needs no MAC on {name}") for text in texts]
