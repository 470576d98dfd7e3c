"""The state that an uplink shares with its parts: pending work, relevant interfaces, failures."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

from ndxdp.backoff import Retry
from ndxdp.daemon.rival_watch import RivalWatch
from ndxdp.daemon.spec import InterfaceSpec
from ndxdp.daemon.wanted_rules import WantedRules
from ndxdp.errors import InterfaceGone, problem_of
from ndxdp.fleet.rivals import Rival
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime.daemon_status import DaemonStatus

log = logging.getLogger(__name__)

_BURST_TIME = 0.01  # seconds: changes come in bursts, and one round serves a burst


@dataclass
class Pending:
    """The work that an uplink does in its next round.

    Attributes:
        rules: Rules have changed and are not written yet.
        comparison: A command has changed the maps: they are compared with the network again.
        announcement: The link was interrupted: all addresses are announced again.
        leased: Leased rules answer again: their addresses are announced again.
        attachment: The program is attached again, or renewed.
    """

    rules: bool = False
    comparison: bool = False
    announcement: bool = False
    leased: bool = False
    attachment: bool = False


class Health:
    """The retries of one interface, whose gravest failure `ndxdp status` shows.

    Attributes:
        interface: The interface's name, for log lines.
        level: The level at which failures are logged.
        answered: The interface has been answered on since the last beginning.
        beginning: Attempts to begin to answer.
        renewal: Attempts to renew the attachment.
        rules: Attempts to write rules.
        following: Attempts to follow the network.
        repair: Attempts to replace removed pins or files.
        watching: Attempts to watch the interface's directory.
    """

    def __init__(self, interface: str, status: DaemonStatus, wake: Callable[[], None]) -> None:
        """Begin without failures.

        Args:
            interface: The interface's name.
            status: The daemon's status, where the gravest failure is noted.
            wake: Called in the loop's thread when another attempt is due.
        """
        self.interface, self.level = interface, logging.ERROR
        self.answered = False
        self._status = status
        self.beginning = Retry(log, wake)
        self.renewal = Retry(log, wake)
        self.rules = Retry(log, wake)
        self.following = Retry(log, wake)
        self.repair = Retry(log, wake)
        self.watching = Retry(log, wake)
        self._by_gravity = (
            self.beginning,
            self.renewal,
            self.rules,
            self.following,
            self.repair,
            self.watching,
        )

    @contextlib.contextmanager
    def guarding(self, retry: Retry) -> Iterator[None]:
        """Log an error of the block and let it be retried; only InterfaceGone is raised."""
        try:
            yield
        except InterfaceGone:
            raise
        except Exception as error:
            problem = f"not in step: {problem_of(error)}"
            known = any(
                other.problem == problem for other in self._by_gravity if other is not retry
            )
            level = logging.DEBUG if known else self.level
            retry.failed(problem, f"{self.interface} is {problem}", level)
            self.show()
        else:
            self.succeeded(retry)

    def succeeded(self, retry: Retry) -> None:
        """Note a success, and log it after a failure."""
        problem = retry.problem
        if retry.succeeded():
            level = min(self.level, logging.INFO)
            log.log(level, "%s is well again, after: %s", self.interface, problem)
            self.show()

    def show(self) -> None:
        """Show the gravest present failure, if there is one, and whether answers are sent."""
        problems = [retry.problem for retry in self._by_gravity if retry.problem]
        problem = problems[0] if problems else ""
        answered = self.answered and not self.beginning.problem
        self._status.note_problem(self.interface, problem, answered=answered)


@dataclass
class UplinkState:
    """The state of one uplink.

    Attributes:
        spec: The interface's present specification.
        health: The retries.
        changed: Set when the next round has work to do.
        stop: Set when the uplink is to end.
        note_links: Called with each change of `own_links`.
        pending: The work of the next round.
        wanted: The rules that the interface gets.
        reachable: The interface has carrier, and answering is not paused; False while that is
            unknown.
        own_links: The uplink's interface, and the bridge or device that it is part of. Changes of
            other interfaces do not concern the uplink, except by the tables of HostTables.
    """

    spec: InterfaceSpec
    health: Health
    changed: asyncio.Event
    stop: asyncio.Event
    note_links: Callable[[frozenset[int]], None]
    pending: Pending = field(default_factory=Pending)
    own_links: frozenset[int] = frozenset()
    reachable: bool = False
    wanted: WantedRules = field(init=False)
    _watch: RivalWatch | None = None
    _rivals_before: int = 0
    _held: Rules | None = None

    def __post_init__(self) -> None:
        self.wanted = WantedRules(self.write_rules)

    def follow_links(self, links: frozenset[int]) -> None:
        """Have changes of these links, and of no others, concern the uplink. Any thread may."""
        if links != self.own_links:
            self.own_links = links
            self.note_links(links)

    @contextlib.contextmanager
    def noting_rivals(self, watch: RivalWatch) -> Iterator[None]:
        """Watch for other hosts that answer for shared addresses during the block."""
        self._watch, self._held = watch, None
        try:
            with watch:
                yield
        finally:
            self._rivals_before += watch.count
            self._watch = None

    def hold(self, leased: Rules) -> None:
        """Take the leased rules, for whose prefixes no other host is to answer."""
        if self._watch is not None and leased is not self._held:
            self._held = leased
            self._watch.hold(leased)

    @property
    def rivals(self) -> int:
        """Advertisements of other nodes for shared addresses that this host answers for."""
        return self._rivals_before + (self._watch.count if self._watch else 0)

    @property
    def rivals_seen(self) -> list[Rival]:
        """Some of the nodes that have sent them."""
        return self._watch.seen() if self._watch else []

    def write_rules(self) -> None:
        """Have the rules written in the next round, even after a failure a moment ago."""
        self.pending.rules = True
        self.health.rules.hurry()
        self.changed.set()

    async def rounds(self) -> AsyncIterator[None]:
        """Yield once for each burst of changes, until the end."""
        changed, stop = self.changed, self.stop
        stopping = asyncio.ensure_future(stop.wait())
        try:
            while not stop.is_set():
                changing = asyncio.ensure_future(changed.wait())
                await asyncio.wait({changing, stopping}, return_when=asyncio.FIRST_COMPLETED)
                changing.cancel()
                if changed.is_set() and not stop.is_set():
                    await asyncio.sleep(_BURST_TIME)
                    changed.clear()
                    yield
        finally:
            stopping.cancel()
