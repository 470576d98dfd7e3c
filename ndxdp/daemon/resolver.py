"""Resolution of neighbours that the kernel did not know when they were solicited.

The program answers by a `neighbour` rule if the kernel has the target as a live neighbour. If not,
the program passes the solicitation on and sends a request to the daemon. The resolver has the
kernel solicit the target, on the interface that the target's route leaves by, and sends the
advertisement as soon as the kernel has found it. The program answers the next solicitation.

A host that scans a prefix would make the kernel solicit addresses without end (RFC 6583). So
requests are limited for each soliciting MAC, and for all of them together. Half of the places for
pending searches belong to the gateways. If all places of a kind are taken, the oldest search ends,
as a live neighbour answers within milliseconds. A search that ends removes its entries from the
kernel's neighbour table. Where that table is full, targets wait for room (neighbour_room.py).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ndxdp.config.model import Resolve
from ndxdp.daemon.neighbour_room import NeighbourRoom, WaitingTargets
from ndxdp.daemon.resolver_counts import ResolverCounts
from ndxdp.daemon.searches import Search, Searches, Solicitor
from ndxdp.errors import NdxdpError, from_os
from ndxdp.kernel import abi
from ndxdp.kernel.ring_buffer import RingBuffer
from ndxdp.ndp.address import solicited_node_group
from ndxdp.ndp.decision import Match
from ndxdp.ndp.limiter import Limiter
from ndxdp.ndp.message import Host, Solicitation, advertise
from ndxdp.ndp.profile import Answer
from ndxdp.netlink.fib import Fib, NudState
from ndxdp.netlink.neighbour_monitor import NeighbourMonitor
from ndxdp.netlink.refusal import leads_to_neighbour
from ndxdp.rules.rule import RuleClass
from ndxdp.store.maps import Maps
from ndxdp.store.records import Resolved

log = logging.getLogger(__name__)

_TIMEOUT = 5.0
"""Seconds of a search. The kernel gives up after mcast_solicit (3) solicitations, one a second."""

_GRACE = 0.05
"""Seconds for which a search keeps its place even if another one needs it."""


class Resolver:
    """Resolves the neighbours that are solicited on one interface, in a running event loop.

    Attributes:
        gateways: MACs (6 bytes each) of the gateways, which the caller updates.
        holds: Returns True if this host answers for an address (16 bytes) under its lease at the
            time of the call. The caller sets it.
    """

    def __init__(
        self, ifindex: int, maps: Maps, limits: Resolve, fib: Fib, sender: socket.socket
    ) -> None:
        """Begin to serve the program's requests.

        Args:
            ifindex: The interface that is answered on.
            maps: Its maps, which must outlive this object.
            limits: How many searches there may be.
            fib: The kernel's tables, which other resolvers may share.
            sender: A packet socket to send advertisements, which other resolvers may share.

        Raises:
            OSError: There is no such interface.
        """
        self._maps, self._limits = maps, limits
        self._loop = asyncio.get_running_loop()
        self.gateways: frozenset[bytes] = frozenset()
        self.holds: Callable[[bytes], bool] = _nothing
        self._searches = Searches(limits.pending)
        self._monitor: NeighbourMonitor | None = None
        # Opened on the first request, because most hosts have none.
        self._requests: RingBuffer | None = None
        self._readable = maps.fds["requests"] if maps.in_kernel else None
        self._in_trouble = False
        self._waiting = WaitingTargets()
        self._retry: asyncio.TimerHandle | None = None
        self._is_collecting = False  # all targets wait, to be sorted
        self._counts = ResolverCounts(maps)
        self._limiter = Limiter(limits.limits, time.monotonic_ns, abi.MAX_SOLICITORS)
        self._fib, self._sender = fib, sender
        self._interface = socket.if_indextoname(ifindex)
        self._room = NeighbourRoom(self._interface)
        if self._readable is not None:
            self._loop.add_reader(self._readable, self._on_requests)

    def close(self) -> None:
        """End all searches."""
        if self._readable is not None:
            self._loop.remove_reader(self._readable)
            self._readable = None
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for target, _ in list(self._searches):
            self._give_up(target)
        self._counts.write()

    # ---- requests

    def resolve(self, ns: Solicitation, rule: Match) -> None:
        """Resolve a target for the packet loop, unless its solicitor has exceeded its limit."""
        self._limiter.gateways = self.gateways
        if self._limiter.charge(ns.eth_source, ns.peer) is None:
            self._resolve(ns, rule, time.monotonic() + self._limits.deadline)

    def _on_requests(self) -> None:
        """Resolve the targets of the program's requests, whose limits the program has applied."""
        if self._requests is None:
            try:
                self._requests = self._maps.requests()
            except OSError as error:
                assert self._readable is not None
                self._loop.remove_reader(self._readable)
                problem = from_os(error).message
                log.error("%s: cannot resolve neighbours: %s", self._interface, problem)
                return
        requests = [abi.REQUEST.unpack(record) for record in self._requests.consume()]
        # The gateways' first: on a busy machine, the time of later ones may run out.
        requests.sort(
            key=lambda fields: (
                fields["eth_source"] not in self.gateways,
                not self._waiting.was_found(fields["target"]),
            )
        )
        with self._maps.opened():
            slots = {fields["rule_class"] for fields in requests}
            classes = self._maps.rule_classes_at(slots)
            for fields in requests:
                self._serve(fields, classes.get(fields["rule_class"]))

    def _serve(self, fields: dict[str, Any], rule_class: RuleClass | None) -> None:
        """Resolve the target of one abi.REQUEST."""
        until = fields["time"] / 1e9 + self._limits.deadline
        is_late = until < time.monotonic() and not self._is_collecting
        if rule_class is None or is_late:
            return  # the rule was removed, or the request is too old
        ns = Solicitation(fields["source"], fields["target"], fields["eth_source"], fields["peer"])
        rule = Match(
            Answer.NEIGHBOUR,
            rule_class.profile,
            rule_class=fields["rule_class"],
            dev=rule_class.dev,
            leased=rule_class.leased,
        )
        self._resolve(ns, rule, until)

    def _resolve(self, ns: Solicitation, rule: Match, until: float) -> None:
        """Answer a solicitation once its target is found, until the deadline."""
        search = self._searches.get(ns.target)
        has_room = not self._room.pause and not self._is_collecting
        if search is None and has_room:
            search = self._search(ns, rule)
            has_room = not self._room.pause  # the kernel may have refused it
        if search is not None:
            self._join(search, ns, rule, until)
        elif not has_room:
            self._wait(ns, rule, until)

    def _join(self, search: Search, ns: Solicitation, rule: Match, until: float) -> None:
        """Answer a solicitation once a search has found its target, until the deadline."""
        search.join(ns, rule, until)
        # The kernel may know it by now, and then sends no netlink message.
        if self._fib.neighbour(search.ifindex, ns.target).is_valid:
            self._found(ns.target)

    def _wait(self, ns: Solicitation, rule: Match, until: float) -> None:
        """Let a target wait until the kernel has room for it."""
        self._waiting.add(ns, rule, until)
        self._counts.add(Resolved(refused=1))

    def _retry_later(self) -> None:
        """Search for the targets that wait after the pause; read no requests of the program before.

        A scan would wake the daemon for each request. Once the ring buffer is full, the program
        drops requests.
        """
        if self._readable is not None and self._room.pause:
            self._loop.remove_reader(self._readable)
        if self._retry is None:
            pause = max(self._room.pause, _GRACE)
            self._retry = self._loop.call_later(pause, self._search_waiting)

    def _search_waiting(self) -> None:
        """Search for the targets that wait, as far as the kernel has room."""
        self._retry = None
        if self._readable is not None:
            self._is_collecting = True
            try:
                self._on_requests()
            finally:
                self._is_collecting = False
        waiting = self._waiting.take()
        waiting.reverse()  # the most wanted one last
        with self._maps.opened():
            while waiting and not self._room.pause:
                each = waiting[-1]
                ns = each.solicitation
                search = self._searches.get(ns.target)
                if search is None:
                    if not self._searches.has_place(for_gateway=self._is_gateway(ns)):
                        break
                    search = self._search(ns, each.rule)
                    if search is None and self._room.pause:
                        break
                waiting.pop()
                if search is not None:
                    self._join(search, ns, each.rule, each.until)
        self._waiting.wait_again(waiting)
        if self._readable is not None and not self._room.pause:
            self._loop.add_reader(self._readable, self._on_requests)
        if len(self._waiting) and self._retry is None:
            self._retry_later()

    def _search(self, ns: Solicitation, rule: Match) -> Search | None:
        """Have the kernel solicit a target; return None without a place, a route, or room."""
        target = ns.target
        for_gateway = self._is_gateway(ns)
        if not self._has_place(for_gateway):
            self._counts.add(Resolved(refused=1))
            return None
        try:
            settings = self._maps.settings()
            route = self._fib.route(target, settings.l3_ifindex)
            if not leads_to_neighbour(route, settings.l3_ifindex, rule.dev):
                return None
            if self._monitor is None:
                self._monitor = NeighbourMonitor()
                self._loop.add_reader(self._monitor.fileno(), self._on_changes)
            self._solicit(route.ifindex, target)
        except OSError as error:
            self._stop_listening()
            if error.errno == errno.ENOBUFS:
                self._room.refused(self._waiting.guests)
                self._retry_later()
                return None
            if not self._in_trouble:
                self._in_trouble = True
                problem = os.strerror(error.errno or 0)
                log.warning("%s: cannot resolve neighbours: %s", self._interface, problem)
            self._counts.add(Resolved(refused=1))
            return None
        self._in_trouble = False
        self._room.granted()
        self._counts.add(Resolved(asked=1))
        timeout = self._loop.call_later(_TIMEOUT, self._failed, target)
        search = Search(route.ifindex, time.monotonic(), for_gateway, timeout)
        self._searches.add(target, search)
        return search

    def _solicit(self, ifindex: int, target: bytes) -> None:
        """Have the kernel solicit a target.

        Raises:
            OSError: ENOBUFS if the neighbour table has no room for the two entries.
        """
        self._fib.solicit(ifindex, target)
        if not self._room.is_tight(self._waiting.guests):
            return
        # Without an entry for the group, the kernel drops its solicitation and reports no error.
        if self._fib.neighbour(ifindex, solicited_node_group(target)) is not NudState.NONE:
            return
        if not self._fib.neighbour(ifindex, target).is_valid:
            self._fib.forget(ifindex, target)
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    def _is_gateway(self, ns: Solicitation) -> bool:
        """Return True if a search for a solicitation takes one of the gateways' places."""
        return ns.eth_source == ns.peer and ns.peer in self.gateways

    def _has_place(self, for_gateway: bool) -> bool:
        """Return True if one more search has a place; the oldest one may have to end for it."""
        has_place = partial(self._searches.has_place, for_gateway=for_gateway)
        if not has_place() and self._monitor is not None:
            self._on_changes()  # some may have been found a moment ago
        if has_place():
            return True
        target, oldest = self._searches.oldest(for_gateway=for_gateway)
        if time.monotonic() - oldest.began < _GRACE:
            return False
        self._give_up(target)
        self._counts.add(Resolved(refused=1))
        return True

    # ---- the kernel's messages

    def _on_changes(self) -> None:
        """End searches whose targets the kernel has found, or has given up."""
        assert self._monitor
        changes = self._monitor.drain()
        if changes is None:
            states = [
                (target, search.ifindex, self._fib.neighbour(search.ifindex, target))
                for target, search in self._searches
            ]
        else:
            states = [(each.address, each.ifindex, each.state) for each in changes]
        for target, ifindex, state in states:
            search = self._searches.get(target)
            if search is None or search.ifindex != ifindex:
                continue
            if state.is_valid:
                self._found(target)
            elif state is NudState.FAILED:
                self._failed(target)

    def _found(self, target: bytes) -> None:
        """End a search, and answer its solicitors."""
        now = time.monotonic()
        self._waiting.found(target)
        for solicitor in self._drop(target).solicitors.values():
            if solicitor.until >= now:
                self._answer(solicitor)

    def _failed(self, target: bytes) -> None:
        """End a search, and count it as failed."""
        self._give_up(target)
        self._waiting.lost(target)
        self._counts.add(Resolved(failed=1))

    def _give_up(self, target: bytes) -> None:
        """End a search and remove its entry: a scan would fill the kernel's neighbour table."""
        search = self._drop(target)
        try:
            if not self._fib.neighbour(search.ifindex, target).is_valid:
                self._fib.forget(search.ifindex, target)
        except OSError as error:
            log.debug("cannot remove a neighbour entry: %s", error)

    def _drop(self, target: bytes) -> Search:
        """End a search, and remove the kernel's entry for the solicited-node group."""
        search = self._searches.remove(target)
        search.timeout.cancel()
        self._stop_listening()
        try:
            self._fib.forget(search.ifindex, solicited_node_group(target))
        except OSError as error:
            log.debug("cannot remove a neighbour entry: %s", error)
        return search

    def _stop_listening(self) -> None:
        """Receive neighbour messages only during a search: a hypervisor has thousands."""
        if not self._searches and self._monitor is not None:
            self._loop.remove_reader(self._monitor.fileno())
            self._monitor.close()
            self._monitor = None

    # ---- the answer

    def _answer(self, solicitor: Solicitor) -> None:
        """Send an advertisement to a solicitor."""
        ns, profile = solicitor.solicitation, solicitor.rule.profile
        try:
            settings = self._maps.settings()
            if settings.paused or (ns.dad and not profile.defend):
                return
            if ns.dad and self._fib.neighbour(settings.l3_ifindex, ns.target).is_valid:
                return  # a node on the link itself has the address, too
            if solicitor.rule.leased and not self.holds(ns.target):
                return  # another host may answer by now
            host = Host(settings.mac, settings.link_local)
            self._sender.sendto(advertise(ns, host, profile), (self._interface, 0))
        except (OSError, NdxdpError) as error:
            log.debug("cannot answer: %s", error)
            return
        self._counts.add(Resolved(answered=1))


def _nothing(address: bytes) -> bool:
    return False
