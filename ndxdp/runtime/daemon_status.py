"""The status of a running daemon, as far as the maps do not have it.

Parts of the daemon register functions that return their status, so that a status is computed only
when it is read. Another thread may read it.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


class Announced(NamedTuple):
    """Announcements to the upstream.

    Attributes:
        sent: Frames that were sent.
        failed: Frames that the interface refused.
        neighbours: Neighbours behind the host that are announced; None if none are wanted.
        arrivals: How often one of them has appeared or moved.
    """

    sent: int
    failed: int
    neighbours: int | None = None
    arrivals: int = 0


class GatewayStatus(NamedTuple):
    """The status of a gateway.

    Attributes:
        silent: The gateway did not answer the last solicitation.
        seen: Seconds since the last answer; None if the gateway has never answered.
    """

    silent: bool
    seen: float | None


class NoSource(Enum):
    """The reason why gateway care has no source address for solicitations."""

    NO_ADDRESS = "no-address"
    PAUSED = "paused"
    UNCOVERED = "uncovered"
    OTHER_MAC = "other-mac"


class CareStatus(NamedTuple):
    """The source address of gateway care, or the reason why it has none.

    Attributes:
        source: 16 bytes. If `why` is set, the configured source that may not be used, if any.
        why: None if there is a source address.
    """

    source: bytes | None = None
    why: NoSource | None = None

    def explain(self, interface: str) -> str:
        """Return the reason as a clause of a sentence; "" without a reason."""
        text = self.source and socket.inet_ntop(socket.AF_INET6, self.source)
        own = f"{interface} has no global address that can be used"
        if text:
            own = f"{text} is not an address of {interface}"
        match self.why:
            case NoSource.NO_ADDRESS:
                return f"{own}, and no rule answers for an exact address"
            case NoSource.PAUSED:
                return f"{own}, and answering is paused"
            case NoSource.UNCOVERED:
                return f"{own}, and no rule answers for it"
            case NoSource.OTHER_MAC:
                return f"{own}, and its rule advertises another MAC"
        return ""


class GroupStatus(NamedTuple):
    """The solicited-node groups of an interface's exact addresses.

    Attributes:
        join: The configured policy: `auto`, `never` or `always`.
        joined: The number of groups that are joined.
        left_out: The number of groups that should be joined and are not: there are too many.
        querier: An MLD querier is on the link; None while that is unknown.
    """

    join: str
    joined: int
    left_out: int
    querier: bool | None


class ExporterStatus(NamedTuple):
    """The address of the daemon's exporter, and why it does not listen there; "" if it does."""

    where: str
    problem: str = ""


class SegmentStatus(NamedTuple):
    """The shared addresses of a segment.

    Attributes:
        segment: The segment.
        joined: This host is a member of it.
        problem: Why this host is no member; "" if it is one.
        members: The hosts that are members.
        shared: The number of shared addresses.
        held: Those of them that this host answers for.
        unheld: Those of them that nobody answers for.
        taken: How often this host has acquired an address.
        given_up: How often it has released one, or lost it with its lease.
        answering: The daemon answers on an interface of the segment, which has carrier. Then the
            host should be a member, unless it is drained.
    """

    segment: str
    joined: bool
    problem: str
    members: list[str]
    shared: int
    held: int
    unheld: int
    taken: int
    given_up: int
    answering: bool = False


class FleetStatus(NamedTuple):
    """This host's part in the shared addresses of its segments.

    Attributes:
        connected: The shared addresses and their holders are followed.
        problem: Why this host answers for no shared address; "" if it may.
        expires: time.time() when its lease lapses unless it is renewed; None without a lease.
        drained: Somebody has drained this host: it gives up all shared addresses.
        segments: The segments.
        refused: The number of shared addresses whose values are refused.
        refused_values: Some of them: `key`, the segment and the name; `reason`.
        rivals: Advertisements seen from other MACs for an address that this host answers for.
        lag: Seconds from the last renewal's request to its answer; None before the first.
        lease: The length of the lease in seconds; 0 if it is unknown.
        rivals_seen: Some of the rivals: `address`, and the `mac` that advertises it, too.
    """

    connected: bool
    problem: str
    expires: float | None
    drained: bool
    segments: list[SegmentStatus]
    refused: int
    refused_values: list[dict[str, str]]
    rivals: int
    lag: float | None
    lease: int = 0
    rivals_seen: Sequence[dict[str, str]] = ()


class EtcdStatus(NamedTuple):
    """The state of the connection to etcd, and of this host's keys there.

    Attributes:
        connected: All keys were read, and the stream of their changes continues.
        endpoint: The URL of the member that the daemon is connected to, or was last; "" before.
        problem: Why the daemon is disconnected; "" while it is connected.
        since: time.time() of the last change of `connected`.
        revision: The revision of etcd up to which the keys are known; 0 before the first.
        confirmed: time.time() when a majority of etcd's members last confirmed the number of keys;
            None before.
        last_event: time.time() of the last change of a key; None before the first one.
        rules: The rules that the keys make.
        refused: The number of keys whose values are refused.
        refused_values: Some of them: `key`, the segment and the name; `reason`.
        unused: The number of keys of segments that no interface has, by segment.
    """

    connected: bool
    endpoint: str
    problem: str
    since: float
    revision: int
    confirmed: float | None
    last_event: float | None
    rules: int
    refused: int
    refused_values: list[dict[str, str]]
    unused: dict[str, int]


@dataclass(slots=True)
class InterfaceStatus:
    """The daemon's status of one interface.

    Attributes:
        announced: Returns the counters of announcements; None if addresses are not announced.
        gateways: Returns the status of the gateways; None without gateway care.
        groups: The multicast groups; None while the daemon does not answer there.
        unanswered: Why the daemon does not answer on the interface by intent; "" if it answers.
        problem: Why the daemon does not answer on the interface, or has not applied a change; ""
            without a problem.
        answered: The daemon answers on the interface, even if there is a problem.
    """

    announced: Callable[[], Announced] | None = None
    gateways: Callable[[], list[GatewayStatus]] | None = None
    groups: GroupStatus | None = None
    unanswered: str = ""
    problem: str = ""
    answered: bool = False


@dataclass(slots=True)
class DaemonStatus:
    """The status of the daemon.

    Attributes:
        reload_ok: The last reload succeeded.
        reloaded: time.time() when the present configuration was read.
        docker_connected: Returns True if the daemon is connected to the container engine; None if
            no container is answered for.
        etcd: Returns the state of the connection to etcd; None if no interface has rules there.
        fleet: Returns this host's part in shared addresses; None if no interface has a segment.
        interfaces: The status of the interfaces, by name.
        reloads_begun: The number of reloads that have begun.
        reloads: The number of reloads that have ended.
        reload_error: Why the last reload failed; "" if it succeeded.
        exporter: The daemon's exporter; None without one.
        on_change: Called after a change, in the thread that makes the change. The argument is True
            if another process may wait for the change.
    """

    reload_ok: bool = True
    reloaded: float = field(default_factory=time.time)
    docker_connected: Callable[[], bool] | None = None
    etcd: Callable[[], EtcdStatus] | None = None
    fleet: Callable[[], FleetStatus] | None = None
    interfaces: dict[str, InterfaceStatus] = field(default_factory=dict)
    reloads_begun: int = 0
    reloads: int = 0
    reload_error: str = ""
    exporter: ExporterStatus | None = None
    on_change: Callable[[bool], None] | None = None

    def changed(self, *, urgent: bool = False) -> None:
        """Call `on_change` after a change; urgent: another process may wait for it."""
        if self.on_change is not None:
            self.on_change(urgent)

    def note_reload_begun(self) -> None:
        """Note that a reload has begun."""
        self.reloads_begun += 1
        self.changed(urgent=True)

    def note_reload(self, ok: bool, error: str = "") -> None:
        """Note the result of a reload."""
        self.reload_ok, self.reload_error = ok, error
        self.reloads += 1
        if ok:
            self.reloaded = time.time()
        self.changed(urgent=True)

    def note_exporter(self, exporter: ExporterStatus | None) -> None:
        """Note the status of the exporter."""
        self.exporter = exporter
        self.changed()

    def note_problem(self, interface: str, problem: str, *, answered: bool) -> None:
        """Note the problem of an interface, "" without one, and whether it is answered on."""
        if interface in self.interfaces:  # a reload may have just removed it
            self.interfaces[interface].problem = problem
            self.interfaces[interface].answered = answered
            self.changed()

    def note_groups(self, interface: str, groups: GroupStatus | None) -> None:
        """Note the multicast groups of an interface; None if it is not answered on."""
        status = self.interfaces.get(interface)  # None if a reload has just removed it
        if status and status.groups != groups:
            status.groups = groups
            self.changed()

    def rename(self, interface: str, name: str) -> None:
        """Rename an interface."""
        if interface in self.interfaces:  # a reload may have just removed it
            self.interfaces[name] = self.interfaces.pop(interface)
            self.changed()

    @contextlib.contextmanager
    def attending(
        self,
        interface: str,
        announced: Callable[[], Announced] | None,
        gateways: Callable[[], list[GatewayStatus]] | None,
    ) -> Iterator[None]:
        """Register functions that return an interface's status while the block runs."""
        status = self._of(interface)
        status.announced, status.gateways = announced, gateways
        try:
            yield
        finally:
            status.announced = status.gateways = None

    @contextlib.contextmanager
    def not_answering(self, interface: str, why: str) -> Iterator[None]:
        """Note why the daemon does not answer on an interface while the block runs."""
        status = self._of(interface)
        status.unanswered = why
        self.changed()
        try:
            yield
        finally:
            status.unanswered = ""
            self.changed()

    def _of(self, interface: str) -> InterfaceStatus:
        """Return the status of an interface; an unused one if the interface was just removed."""
        return self.interfaces.get(interface) or InterfaceStatus()
