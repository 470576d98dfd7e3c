"""The guests of an uplink: live neighbours behind the host, announced when they appear or move."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection

from ndxdp.daemon.bridge_departures import BridgeDepartures
from ndxdp.daemon.shared_descriptors import Shared
from ndxdp.ndp.profile import Answer, Profile
from ndxdp.netlink.fib import Fib, Neighbour, NudState
from ndxdp.netlink.host_routes import NewHostRouteMonitor
from ndxdp.netlink.links import Link
from ndxdp.netlink.neighbour_monitor import NeighbourChange
from ndxdp.netlink.neighbours import neighbour
from ndxdp.netlink.refusal import leads_to_neighbour
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.upstream.announce import Announcer
from ndxdp.upstream.claims import Claims
from ndxdp.upstream.guests import Guests

log = logging.getLogger(__name__)

_PIECE = 128
"""Neighbours of a survey that are judged before other tasks of the event loop may run."""

_SURVEY_PERIOD = 1.0
"""Seconds between two surveys. Each reads the whole neighbour table."""


class GuestWatch:
    """Follows all neighbours of the host, while run() and run_surveys() run.

    For use by the event loop's thread only.
    """

    def __init__(self, shared: Shared, announcer: Announcer, rate: float, link: Link) -> None:
        """Follow nothing until follow().

        Args:
            shared: What all uplinks share.
            announcer: Sends the announcements.
            rate: Frames per second of the announcer.
            link: The interface that is announced on.

        Raises:
            NdxdpError: This process does not have CAP_NET_RAW.
            OSError: The interface is absent.
        """
        self._shared, self._fib = shared, shared.fib
        self._wake, self._wanted = asyncio.Event(), asyncio.Event()
        self._lost = False
        self._again = True
        self._rules: Rules | None = None
        self._exact: dict[Rule, AddressSet] = {}  # `neighbour` rules
        self._other_exact: list[AddressSet] = []
        self._lengths: list[int] = []
        self._here: frozenset[int] = frozenset()
        self._l3_ifindex = 0
        self._unfollow: Callable[[], None] = _nothing
        self.guests = Guests(self, announcer, rate, time.monotonic)
        self._claims = Claims(link.ifindex, link.mac, self._on_claim)
        self._bridges = BridgeDepartures(self._on_bridges)
        self._routes = NewHostRouteMonitor()
        asyncio.get_running_loop().add_reader(self._routes.fileno(), self._on_routes)
        announcer.on_restart(self._announce_again)

    def close(self) -> None:
        """Follow nothing more."""
        self._claims.close()
        self._bridges.close()
        asyncio.get_running_loop().remove_reader(self._routes.fileno())
        self._routes.close()
        self._unfollow()

    def follow(self, rules: Rules, link: Link) -> None:
        """Take the interface's rules; follow the neighbours behind the host.

        Args:
            rules: All rules of the interface.
            link: The interface.
        """
        # Neighbours on the bridge or device that the interface is part of are not behind the host.
        self._here = frozenset((link.ifindex, link.l3_ifindex, link.master, link.lower))
        self._l3_ifindex, self._claims.mac = link.l3_ifindex, link.mac
        if rules is self._rules:
            return
        if self._rules is None:
            self._unfollow = self._shared.follow_all_neighbours(self._on_changes)
        self._rules = rules
        self._exact = {rule: some for rule, some in rules.exact.items() if _asks(rule)}
        self._other_exact = [some for rule, some in rules.exact.items() if not _asks(rule)]
        self._lengths = sorted({prefix.length for prefix in rules.wider}, reverse=True)
        self._wanted.set()

    # ---- what Guests asks (upstream.guests.Kernel)

    def covers(self, address: bytes) -> bool:
        """Return True if a `neighbour` rule answers for an address, on whichever link it lives."""
        return self._neighbour_rule(address) is not None

    def profile(self, address: bytes, ifindex: int) -> Profile | None:
        """Return how an address is answered for; None if no route leads to it by an interface."""
        rule = self._neighbour_rule(address)
        if rule is None or ifindex in self._here:
            return None
        try:
            if not self._fib.forwards(self._l3_ifindex):
                return None
            route = self._fib.route(address, self._l3_ifindex)
            if route.ifindex != ifindex:
                return None
            leads = leads_to_neighbour(route, self._l3_ifindex, rule.dev)
        except OSError as error:
            log.debug("cannot look up the route to a neighbour: %s", error)
            return None
        return rule.profile if leads else None

    def entry(self, address: bytes, ifindex: int) -> Neighbour:
        """Return the kernel's neighbour entry."""
        try:
            return Neighbour(address, *neighbour(ifindex, address))
        except Exception as error:
            log.debug("cannot read a neighbour entry: %s", error)
            return Neighbour(address, NudState.NONE, None)

    def confirm(self, address: bytes, ifindex: int) -> None:
        """Have the kernel find out whether a neighbour is there, by its own solicitations."""
        with contextlib.suppress(OSError):  # the interface has gone, or the table is full
            self._fib.solicit(ifindex, address)

    def forget(self, address: bytes, ifindex: int) -> None:
        """Remove a neighbour's entry."""
        with contextlib.suppress(OSError):
            self._fib.forget(ifindex, address)

    def search(self, address: bytes, ifindex: int) -> None:
        """Have the kernel forget a neighbour, and solicit it."""
        try:
            self._fib.forget(ifindex, address)
            self._fib.solicit(ifindex, address)
        except OSError as error:
            log.debug("cannot look for a neighbour that another host claims: %s", error)

    def _neighbour_rule(self, address: bytes) -> Rule | None:
        """Return the rule for an address, if it is a `neighbour` rule that applies."""
        rules = self._rules
        if rules is None:
            return None
        for rule, some in self._exact.items():
            if address in some:
                return rule
        found = (rules.wider.get(Prefix.around(address, each)) for each in self._lengths)
        wider = next((each for each in found if each is not None), None)
        if wider is None or not _asks(wider) or any(address in some for some in self._other_exact):
            return None
        return wider

    # ---- changes

    def _announce_again(self) -> None:
        self._again = True
        self._wanted.set()

    def _on_changes(self, changes: list[NeighbourChange] | None) -> None:
        if changes is None:
            self._lost = True
            self._wanted.set()
            return
        for ifindex, address, state, mac in changes:
            if ifindex not in self._here:
                self.guests.on_change(ifindex, address, state, mac)
        self._wake.set()

    def _on_bridges(self, gone: Collection[tuple[int, bytes]]) -> None:
        self.guests.on_departures(gone)
        self._wake.set()

    def _on_claim(self, address: bytes) -> None:
        self.guests.on_claim(address)
        self._wake.set()

    def _on_routes(self) -> None:
        for address, ifindex in self._routes.drain():
            if ifindex not in self._here:
                self.guests.on_route(address, ifindex)
                self._wake.set()

    async def run(self) -> None:
        """Hand over guests to the announcer until cancelled."""
        while True:
            self._wake.clear()
            pause = self.guests.work()
            with contextlib.suppress(TimeoutError):
                # Up to Python 3.11, wait_for() loses a cancellation if the event is set, too.
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def run_surveys(self) -> None:
        """Read the kernel's whole table whenever changes alone do not suffice, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            lost, self._lost = self._lost, False
            again, self._again = self._again, False
            try:
                await self._survey(lost=lost, again=again)
            except BaseException:
                self._lost, self._again = self._lost or lost, self._again or again
                self._wanted.set()
                raise
            await asyncio.sleep(_SURVEY_PERIOD)

    async def _survey(self, *, lost: bool, again: bool) -> None:
        guests = self.guests
        guests.begin_survey()
        present = await self._shared.call(_read_all)
        guests.end_survey(present)
        for at in range(0, len(present), _PIECE):
            for ifindex, entry in present[at : at + _PIECE]:
                if ifindex not in self._here:
                    guests.look(ifindex, entry, lost=lost, again=again)
            self._wake.set()
            await asyncio.sleep(0)


def _nothing() -> None:
    pass


def _asks(rule: Rule) -> bool:
    """Return True if a rule answers for live neighbours."""
    return rule.answer is Answer.NEIGHBOUR and rule.is_applied


def _read_all() -> list[tuple[int, Neighbour]]:
    with Fib() as fib:
        return fib.all_neighbours()
