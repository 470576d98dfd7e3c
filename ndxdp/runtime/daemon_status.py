"""What a running daemon knows beside the maps, for those who show it.

Its parts leave here how they are asked; nothing is copied until somebody asks. All of it may be
read from another thread.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


class Announced(NamedTuple):
    """Frames that told the upstream of addresses: sent, and not taken by the interface."""

    sent: int
    failed: int


class GatewayStatus(NamedTuple):
    """silent: it did not answer the last time that it was solicited. seen: s since it did, None
    if it never has."""

    silent: bool
    seen: float | None


class NoSource(Enum):
    """The reasons for which gateway care has no address to solicit from."""

    NO_ADDRESS = "no-address"
    PAUSED = "paused"
    UNCOVERED = "uncovered"
    OTHER_MAC = "other-mac"


class CareStatus(NamedTuple):
    """The address from which gateway care solicits, or why it solicits nothing.

    source: 16 bytes; where `why` is set, the configured source that may not be used, if any. why:
    None while there is an address to solicit from.
    """

    source: bytes | None = None
    why: NoSource | None = None

    def explain(self, interface: str) -> str:
        """Return the reason as a clause for a sentence; '' without one."""
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


class ExporterStatus(NamedTuple):
    """Metrics: where the daemon is to serve them, and why it does not; "" while it does."""

    where: str
    problem: str = ""


@dataclass(slots=True)
class InterfaceStatus:
    """One interface that the daemon attends to. None: nobody does that there at present.

    unanswered: why nothing is to be answered there, "" where something is. problem: why the
    interface is not answered on, or not in step; "" when all is well. answered: the daemon answers
    there at present, even if it reports a problem.
    """

    announced: Callable[[], Announced] | None = None
    gateways: Callable[[], list[GatewayStatus]] | None = None
    unanswered: str = ""
    problem: str = ""
    answered: bool = False


@dataclass(slots=True)
class DaemonStatus:
    """What the daemon knows of itself.

    Attributes:
        reload_ok: The last attempt to read the configuration anew succeeded.
        reloaded: time.time() when the configuration in force was read.
        docker_connected: Asks whether the engine is; None if no container is answered for.
        interfaces: What the daemon attends to, by the interface's name.
        reloads_begun: Attempts to read the configuration anew.
        reloads: Those of them that have ended.
        reload_error: Why the last one failed; "" if it succeeded.
        exporter: The daemon's own; None if it has none.
        on_change: Called after a change, in the thread that makes it.
    """

    reload_ok: bool = True
    reloaded: float = field(default_factory=time.time)
    docker_connected: Callable[[], bool] | None = None
    interfaces: dict[str, InterfaceStatus] = field(default_factory=dict)
    reloads_begun: int = 0
    reloads: int = 0
    reload_error: str = ""
    exporter: ExporterStatus | None = None
    on_change: Callable[[], None] | None = None

    def changed(self) -> None:
        """Notify the subscriber of a change."""
        if self.on_change is not None:
            self.on_change()

    def note_reload_begun(self) -> None:
        """Note that the configuration is being read anew."""
        self.reloads_begun += 1
        self.changed()

    def note_reload(self, ok: bool, error: str = "") -> None:
        """Note the outcome of an attempt to read the configuration anew."""
        self.reload_ok, self.reload_error = ok, error
        self.reloads += 1
        if ok:
            self.reloaded = time.time()
        self.changed()

    def note_exporter(self, exporter: ExporterStatus | None) -> None:
        """Note where metrics are served, or why they are not."""
        self.exporter = exporter
        self.changed()

    def note_problem(self, interface: str, problem: str, *, answered: bool) -> None:
        """Note the problem of an interface, "" without one, and whether it is answered on."""
        if interface in self.interfaces:  # else a reload has just removed it
            self.interfaces[interface].problem = problem
            self.interfaces[interface].answered = answered
            self.changed()

    def rename(self, interface: str, name: str) -> None:
        """Show an interface under another name."""
        if interface in self.interfaces:  # else a reload has just removed it
            self.interfaces[name] = self.interfaces.pop(interface)
            self.changed()

    @contextlib.contextmanager
    def attending(
        self,
        interface: str,
        announced: Callable[[], Announced] | None,
        gateways: Callable[[], list[GatewayStatus]] | None,
    ) -> Iterator[None]:
        """While the block lasts, these are asked about the interface."""
        attended = self.interfaces.setdefault(interface, InterfaceStatus())
        attended.announced, attended.gateways = announced, gateways
        try:
            yield
        finally:
            attended.announced = attended.gateways = None

    @contextlib.contextmanager
    def not_answering(self, interface: str, why: str) -> Iterator[None]:
        """While the block lasts, nothing is to be answered on the interface."""
        attended = self.interfaces.setdefault(interface, InterfaceStatus())
        attended.unanswered = why
        self.changed()
        try:
            yield
        finally:
            attended.unanswered = ""
            self.changed()
