"""Answers for neighbours that the kernel did not know when they were solicited for.

The program answers for a `neighbour` rule's target if the kernel has it as a neighbour. If not, it
tells us, and lets the solicitation go. We have the kernel solicit the target, on the interface
where its route leads, and send the advertisement as soon as the kernel has found it. The next
solicitation is answered by the program.

Who scans a prefix makes the kernel solicit what does not exist (RFC 6583). So each soliciting MAC
may make us ask so often and not more, and so may all of them together, who have half of the places
for those that wait. The other half is the gateways'. Where all places are taken, the one that has
waited longest makes room: a living neighbour answers within milliseconds. What the search has left
in the neighbour table is removed when it ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from ndxdp.config.model import Resolve
from ndxdp.errors import NdxdpError, from_os
from ndxdp.kernel import abi
from ndxdp.kernel.bpf_maps import RingBuffer
from ndxdp.ndp.address import solicited_node_group
from ndxdp.ndp.decision import Match
from ndxdp.ndp.limiter import Limiter
from ndxdp.ndp.message import Host, Solicitation, advertise
from ndxdp.ndp.profile import Answer
from ndxdp.netlink.fib import Fib, NudState, Route, RouteType
from ndxdp.netlink.neighbour_monitor import NeighbourMonitor
from ndxdp.rules.interface_name import matches_dev
from ndxdp.store.maps import Maps
from ndxdp.store.records import Resolved

log = logging.getLogger(__name__)

_ASKERS_MAX = 8
"""Solicitors that one neighbour's advertisement is sent to."""

_PATIENCE = 5.0
"""Seconds that a place is taken. The kernel gives up after mcast_solicit (3) times a second."""

_YOUNG = 0.05
"""Seconds that a search has its place for itself, whoever else wants one."""


class _Asker(NamedTuple):
    """Who waits for an advertisement. until: s of CLOCK_MONOTONIC."""

    solicitation: Solicitation
    rule: Match
    until: float


@dataclass
class _Wanted:
    """A neighbour that the kernel is looking for."""

    ifindex: int
    began: float  # s of CLOCK_MONOTONIC
    for_gateway: bool  # whose places it takes one of
    giving_up: asyncio.TimerHandle
    askers: dict[tuple[bytes, bytes], _Asker] = field(default_factory=dict)


class Resolver:
    """Of one interface, in a running event loop. Maps are the caller's; close() before them.

    gateways: MACs (6 bytes) of the gateways, which the caller may set anew.
    """

    def __init__(
        self, ifindex: int, maps: Maps, limits: Resolve, fib: Fib, sender: socket.socket
    ) -> None:
        """Begin to serve the program's requests.

        Args:
            ifindex: The interface that is answered on.
            maps: Its maps.
            limits: How often it may be asked for.
            fib: The kernel's tables.
            sender: A packet socket, to send advertisements by. Others may use these two as well.

        Raises:
            OSError: There is no such interface.
        """
        self._maps, self._limits = maps, limits
        self._loop = asyncio.get_running_loop()
        self.gateways: frozenset[bytes] = frozenset()
        self._pending: dict[bytes, _Wanted] = {}
        self._taken = {False: 0, True: 0}  # places, by whether they are the gateways'
        self._news: NeighbourMonitor | None = None
        self._requests: RingBuffer | None = None  # opened with the first one: seldom needed
        self._readable = maps.fds["requests"] if maps.in_kernel else None
        self._in_trouble = False
        self._limiter = Limiter(limits.limits, time.monotonic_ns, abi.MAX_SOLICITORS)
        self._fib, self._sender = fib, sender
        self._interface = socket.if_indextoname(ifindex)
        if self._readable is not None:
            self._loop.add_reader(self._readable, self._on_requests)

    def close(self) -> None:
        if self._readable is not None:
            self._loop.remove_reader(self._readable)
            self._readable = None
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        for target in list(self._pending):
            self._give_up(target)

    # ---- who asks

    def ask_for(self, ns: Solicitation, rule: Match) -> None:
        """The same for the userspace path, whose soliciting MACs are limited here."""
        self._limiter.gateways = self.gateways
        if self._limiter.charge(ns.eth_source, ns.peer) is None:
            self._ask(ns, rule, time.monotonic() + self._limits.deadline)

    def _on_requests(self) -> None:
        if self._requests is None:
            try:
                self._requests = self._maps.requests()
            except OSError as error:
                assert self._readable is not None
                self._loop.remove_reader(self._readable)
                problem = from_os(error).message
                log.error("%s: neighbours are not looked for: %s", self._interface, problem)
                return
        requests = [abi.REQUEST.unpack(record) for record in self._requests.consume()]
        # Gateways' first: where the machine is busy, others' may come to an end of their time.
        requests.sort(key=lambda fields: fields["eth_source"] not in self.gateways)
        for fields in requests:
            until = fields["time"] / 1e9 + self._limits.deadline
            group = self._maps.rule_class(fields["rule_class"])
            if group is None or until < time.monotonic():
                continue  # its rule has gone, or nobody read this for long
            ns = Solicitation(
                fields["source"], fields["target"], fields["eth_source"], fields["peer"]
            )
            rule = Match(
                Answer.NEIGHBOUR, group.profile, rule_class=fields["rule_class"], dev=group.dev
            )
            self._ask(ns, rule, until)

    def _ask(self, ns: Solicitation, rule: Match, until: float) -> None:
        wanted = self._pending.get(ns.target)
        if wanted is None:
            wanted = self._seek(ns, rule)
        if wanted is None:
            return
        if len(wanted.askers) < _ASKERS_MAX or (ns.source, ns.peer) in wanted.askers:
            wanted.askers[ns.source, ns.peer] = _Asker(ns, rule, until)
        # It may be there by now, of which nobody would tell.
        if self._fib.neighbour(wanted.ifindex, ns.target).is_valid:
            self._found(ns.target)

    def _seek(self, ns: Solicitation, rule: Match) -> _Wanted | None:
        """Have the kernel look for it; None if there is no place, or nowhere to look."""
        target = ns.target
        for_gateway = ns.eth_source == ns.peer and ns.peer in self.gateways
        if not self._has_place(for_gateway):
            self._count(Resolved(refused=1))
            return None
        try:
            settings = self._maps.settings()
            route = self._fib.route(target, settings.l3_ifindex)
            if not _leads_to_a_neighbour(route, settings.l3_ifindex, rule.dev):
                return None
            if self._news is None:
                self._news = NeighbourMonitor()
                self._loop.add_reader(self._news.fileno(), self._on_news)
            self._fib.solicit(route.ifindex, target)
        except OSError as error:  # ENOBUFS: the neighbour table is full
            if not self._in_trouble:
                self._in_trouble = True
                log.warning("neighbours are not looked for: %s", os.strerror(error.errno or 0))
            self._count(Resolved(refused=1))
            self._rest()
            return None
        self._in_trouble = False
        self._count(Resolved(asked=1))
        giving_up = self._loop.call_later(_PATIENCE, self._failed, target)
        wanted = _Wanted(route.ifindex, time.monotonic(), for_gateway, giving_up)
        self._pending[target] = wanted
        self._taken[for_gateway] += 1
        return wanted

    def _has_place(self, for_gateway: bool) -> bool:
        """Find out whether one more search has a place; the oldest one may have to make room."""
        places = max(self._limits.pending // 2, 1)
        if self._taken[for_gateway] >= places and self._news is not None:
            self._on_news()  # some may have been found a moment ago
        if self._taken[for_gateway] < places:
            return True
        oldest = next(
            target for target, each in self._pending.items() if each.for_gateway == for_gateway
        )
        if time.monotonic() - self._pending[oldest].began < _YOUNG:
            return False
        self._give_up(oldest)
        self._count(Resolved(refused=1))
        return True

    # ---- what the kernel says

    def _on_news(self) -> None:
        assert self._news
        news = self._news.drain()
        if news is None:
            states = [
                (target, wanted.ifindex, self._fib.neighbour(wanted.ifindex, target))
                for target, wanted in self._pending.items()
            ]
        else:
            states = [(each.address, each.ifindex, each.state) for each in news]
        for target, ifindex, state in states:
            wanted = self._pending.get(target)
            if wanted is None or wanted.ifindex != ifindex:
                continue
            if state.is_valid:
                self._found(target)
            elif state is NudState.FAILED:
                self._failed(target)

    def _found(self, target: bytes) -> None:
        now = time.monotonic()
        for asker in self._drop(target).askers.values():
            if asker.until >= now:
                self._answer(asker)

    def _failed(self, target: bytes) -> None:
        self._give_up(target)
        self._count(Resolved(failed=1))

    def _give_up(self, target: bytes) -> None:
        """End a search and leave no entry behind: a scan would fill the kernel's table."""
        wanted = self._drop(target)
        try:
            if not self._fib.neighbour(wanted.ifindex, target).is_valid:
                self._fib.forget(wanted.ifindex, target)
        except OSError as error:
            log.debug("an entry was not removed: %s", error)

    def _drop(self, target: bytes) -> _Wanted:
        """End a search. The kernel's entry for the group that it solicited goes with it."""
        wanted = self._pending.pop(target)
        self._taken[wanted.for_gateway] -= 1
        wanted.giving_up.cancel()
        self._rest()
        try:
            self._fib.forget(wanted.ifindex, solicited_node_group(target))
        except OSError as error:
            log.debug("an entry was not removed: %s", error)
        return wanted

    def _rest(self) -> None:
        """Hear of neighbours only while one is wanted: a hypervisor has thousands."""
        if not self._pending and self._news is not None:
            self._loop.remove_reader(self._news.fileno())
            self._news.close()
            self._news = None

    # ---- the answer

    def _answer(self, asker: _Asker) -> None:
        ns, profile = asker.solicitation, asker.rule.profile
        try:
            settings = self._maps.settings()
            if settings.paused or (ns.dad and not profile.defend):
                return
            if ns.dad and self._fib.neighbour(settings.l3_ifindex, ns.target).is_valid:
                return  # a node on the link itself has the address, too
            host = Host(settings.mac, settings.link_local)
            self._sender.sendto(advertise(ns, host, profile), (self._interface, 0))
        except (OSError, NdxdpError) as error:
            log.debug("not answered: %s", error)
            return
        self._count(Resolved(answered=1))

    def _count(self, more: Resolved) -> None:
        try:
            self._maps.count_resolved(more)
        except (OSError, NdxdpError, struct.error) as error:
            log.debug("not counted: %s", error)


def _leads_to_a_neighbour(route: Route, ifindex: int, via: tuple[str, ...]) -> bool:
    """As the program judged, unless the tables changed meanwhile."""
    if route.type is not RouteType.UNICAST or route.encap or route.gateway is not None:
        return False
    return route.ifindex != ifindex and matches_dev(socket.if_indextoname(route.ifindex), via)
