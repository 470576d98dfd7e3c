"""A share of the daemon: learning hosts, routing to them, answering and relaying.

The decisions are those of ndxdp/sharing/, which is pure. This module gives it frames, the state of
the interfaces and the time, and does what it wants done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path

from ndxdp.config.model import Share
from ndxdp.daemon import share_links
from ndxdp.daemon.share_actions import ShareActions
from ndxdp.daemon.share_former import FormerShare
from ndxdp.daemon.share_links import Members, ShareLink, ShareLinks
from ndxdp.daemon.share_neighbours import ShareNeighbours
from ndxdp.daemon.share_reporter import ShareReporter
from ndxdp.daemon.share_routes import ShareRoutes
from ndxdp.daemon.share_rules import share_rules
from ndxdp.daemon.shared_descriptors import Shared
from ndxdp.ndp import frame as layout
from ndxdp.ndp.address import is_multicast
from ndxdp.ndp.decision import validate
from ndxdp.ndp.message import (
    NeighborAdvertisement,
    Solicitation,
    is_sent_to,
    parse_advertisement,
)
from ndxdp.netlink.link_monitor import Changes
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime.share_report import ShareReport
from ndxdp.sharing.actions import Action, Advertise, Unbind
from ndxdp.sharing.hosts import HostLimits
from ndxdp.sharing.learning import Learner
from ndxdp.sharing.relay import Relay, RelayLink

log = logging.getLogger(__name__)

_BURST_TIME = 0.05  # seconds: changes of the network come in bursts, and one look serves a burst

_PAUSE_FACTOR = 10
"""The pause after a look at the interfaces, as a multiple of the look's processor time: on a host
where addresses change all the time, looks take a tenth of a processor at most."""

_LOOK_PERIOD = 60.0
"""Seconds between two comparisons with the kernel's interfaces and routes, about which messages may
be lost."""

_SHORTEST = 0.001  # seconds until the timer, so that the loop serves others in between


class ShareTask:
    """Serves one share.

    Call the methods in the event loop's thread.
    """

    def __init__(
        self,
        share: Share,
        directory: Path,
        netns: int,
        shared: Shared,
        rules_changed: Callable[[], None],
        may_announce: Callable[[str], bool] = lambda interface: True,
    ) -> None:
        """Know nothing yet.

        Args:
            share: The share.
            directory: The run directory.
            netns: The inode number of the network namespace.
            shared: What all interfaces of the daemon share.
            rules_changed: Called when rules_of() may return others.
            may_announce: Returns True if addresses may be announced on an interface, by its name.
        """
        self.share = share
        self._shared = shared
        self._rules_changed, self._may_announce = rules_changed, may_announce
        self._members = Members(share)
        self._links = ShareLinks()
        self._own_macs: frozenset[bytes] = frozenset()
        self._learner = Learner(HostLimits(share.max_hosts, share.max_hosts_per_mac, share.expire))
        self._relay = Relay(relay=share.relay)
        self._prefixes: frozenset[Prefix] = frozenset()
        self._rules: tuple[frozenset[Prefix], frozenset[bytes]] | None = None
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._reporter = ShareReporter(share, directory, netns)
        self._former = FormerShare(None)
        self._leaves = False
        self._successor: Members | None = self._members

    # ---- what others ask

    def rules_of(self, interface: str) -> Rules | None:
        """Return the rules of an interface: None while they are unknown, none without a share."""
        if not self._members.is_member(interface):
            return Rules()
        if self._rules is None:
            return None
        link = next((each for each in self._links.all if each.name == interface), None)
        routers = self._links.routers.get(link.ifindex, ()) if link else ()
        return share_rules(self.share, *self._rules, routers)

    def network_changed(self, changes: Changes) -> None:
        """Look at the interfaces again if a change may concern them."""
        names = any(self._members.is_member(name) for name in changes.names)
        ours = frozenset(index for link in self._links.all for index in link[1:3])
        if names or changes.lost or changes.local_routes or changes.concern(ours):
            self._changed.set()

    # ---- life

    async def run(self) -> None:
        """Serve the share until the task is cancelled."""
        with contextlib.ExitStack() as opened:
            routes = ShareRoutes(self._routes_removed)
            self._actions = ShareActions(
                self.share.upstream,
                routes,
                self._learner.hosts,
                self._on_frames,
                self._may_announce,
                self._learner.counters,
            )
            self._neighbours = ShareNeighbours(
                self._shared, routes.interfaces, self._lost, self._departed
            )
            opened.callback(self._close)
            self._restore_prefixes()
            compared = float("-inf")
            while True:
                self._changed.clear()
                began = time.monotonic()
                compares = began >= compared + _LOOK_PERIOD
                if compares:
                    compared = began
                    routes.audit()
                pause = max(_BURST_TIME, _PAUSE_FACTOR * await self._look(adopts=compares))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_PERIOD):
                        await self._changed.wait()
                await asyncio.sleep(pause)

    def leave(self, successor: Share | None) -> None:
        """Have run(), when it is cancelled, clean up the links that no share has any more.

        Otherwise everything stays for the next daemon, which adopts it.

        Args:
            successor: The share that takes over the links that it has, too; None without one.
        """
        self._leaves, self._successor = True, Members(successor) if successor else None

    def _close(self) -> None:
        now = self._now()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._neighbours.close()
        if self._leaves:
            kept = self._successor.indexes(self._links) if self._successor else frozenset()
            self._actions.send(self._relay.withdraw(now, self._actions.by_index.keys() - kept))
            routes = self._actions.routes.interfaces.items()
            self._perform([Unbind(*each) for each in routes if each[1] not in kept])
        if self._successor is None:
            self._reporter.remove()
        else:
            self._reporter.write(now, self._report(now))
        self._actions.close()

    def _now(self) -> float:
        return time.monotonic()  # as the event loop's clock

    # ---- the network

    async def _look(self, *, adopts: bool) -> float:
        """Take the interfaces and addresses as they are now.

        Args:
            adopts: Look for routes to adopt even if the interfaces have not changed.

        Returns:
            Seconds of processor time.
        """
        links, work = await self._shared.call(
            partial(share_links.read_timed, self.share, self._members)
        )
        began = time.thread_time()
        now = self._now()
        before, self._links = self._links, links
        self._own_macs = frozenset(link.mac for link in links.all if link.mac)
        self._actions.set_links(links)
        self._neighbours.follow(
            frozenset(link.l3_ifindex for link in links.downstream if link.has_discovery),
            links.upstream.l3_ifindex if links.upstream is not None else 0,
        )
        upstream, active = links.upstream, self._actions.by_index
        if upstream is not None and upstream.ifindex not in active:
            upstream = None
        downstream = [link for link in links.downstream if link.ifindex in active and link.up]
        self._relay.set_links(
            now,
            _relay_link(upstream) if upstream and upstream.up else None,
            {link.ifindex: _relay_link(link) for link in downstream},
        )
        self._perform(
            self._learner.set_links(
                now,
                upstream.ifindex if upstream else None,
                frozenset(link.ifindex for link in downstream),
            )
        )
        self._reserve(now)
        self._take_prefixes(now)
        # With thousands of hosts, to read all routes takes some 50 ms.
        if adopts or links.indexes != before.indexes:
            self._adopt(now)
        self._perform(self._actions.missing())
        if links != before:
            self._set_rules()
        self._after(now)
        return work + time.thread_time() - began

    def _reserve(self, now: float) -> None:
        """Tell the learner which addresses are this host's own, and which are routers'."""
        upstream = self._links.upstream
        routers = {each.address for each in self._relay.routers(now)}
        if upstream is not None:
            routers |= upstream.gateways
        own = {link.ifindex: link.own for link in self._links.all}
        own[0] = self._links.local  # those of other interfaces, too
        self._perform(self._learner.set_reserved(now, own, frozenset(routers)))

    def _adopt(self, now: float) -> None:
        """Adopt the routes that an earlier daemon has left, once it is clear what is shared."""
        if not self._prefixes:
            return
        by_route = {link.l3_ifindex: link for link in reversed(self._links.downstream)}
        for route in self._actions.routes.adopt(by_route):
            link = by_route[route.ifindex]
            mac, age, idle = self._former.host(route.address, link.name)
            self._perform(
                self._learner.adopt(now, route.address, link.ifindex, mac, age=age, idle=idle)
            )

    # ---- prefixes and rules

    def _restore_prefixes(self) -> None:
        """Share what an earlier daemon shared, until routers are heard."""
        self._former = FormerShare(self._reporter.former())
        self._actions.routes.remove_by(self._members.gone(self._former.links))
        if not self.share.prefixes:
            now = self._now()
            self._relay.restore(now, self._former.prefixes(now))

    def _shared_prefixes(self, now: float) -> dict[Prefix, float | None]:
        """Return the shared prefixes, with the end of the valid lifetime."""
        if self.share.prefixes:
            return dict.fromkeys(self.share.prefixes)
        return self._relay.prefixes(now)

    def _take_prefixes(self, now: float) -> None:
        """Take the shared prefixes as they are now; changed ones change the rules."""
        prefixes = frozenset(self._shared_prefixes(now))
        if prefixes == self._prefixes:
            return
        for prefix in sorted(prefixes - self._prefixes):
            log.info("share of %s: %s is shared", self.share.upstream, prefix)
        for prefix in sorted(self._prefixes - prefixes):
            log.info("share of %s: %s is no longer shared", self.share.upstream, prefix)
        self._prefixes = prefixes
        self._perform(self._learner.set_prefixes(now, prefixes))
        self._adopt(now)
        self._set_rules()

    def _set_rules(self) -> None:
        """Have the rules of all interfaces made again."""
        if not self._prefixes and self._rules is None:
            return  # those of an earlier daemon stay until prefixes are known
        local = frozenset(
            address
            for address in self._links.local
            if any(_is_node_in(address, prefix) for prefix in self._prefixes)
        )
        self._rules = self._prefixes, local
        self._rules_changed()

    # ---- frames

    def _on_frames(self, ifindex: int, frames: list[bytes]) -> None:
        """Take frames that have come by an interface."""
        link = self._actions.by_index.get(ifindex)
        if link is None:
            return
        now = self._now()
        self._reporter.touch()
        for frame in frames:
            if layout.eth_source_of(frame) in self._own_macs:
                continue  # the network reflects it
            match layout.icmpv6_type_of(frame):
                case layout.TYPE_NS:
                    ns = validate(frame, link.mac, _no_rule)
                    if isinstance(ns, Solicitation):
                        self._perform(self._on_solicitation(now, link, ns))
                case layout.TYPE_NA:
                    na = parse_advertisement(frame)
                    if isinstance(na, NeighborAdvertisement) and _is_for_us(na, link.mac):
                        self._perform(self._learner.advertised(now, ifindex, na))
                case _:
                    mac = layout.eth_source_of(frame)
                    self._perform(self._learner.sighted(now, ifindex, mac))
                    self._actions.send(self._relay.heard(now, ifindex, frame))
                    self._take_prefixes(now)
        self._after(now)

    def _on_solicitation(self, now: float, link: ShareLink, ns: Solicitation) -> Sequence[Action]:
        """Return what a solicitation asks for."""
        if self._is_behind_routes(link, ns.target):
            # No Neighbor Discovery there, so nobody can be asked; the kernel's route decides.
            if not ns.dad:
                return ()  # the program answers
            self._learner.counters["defended"] += 1
            return (Advertise(link.ifindex, ns),)
        return self._learner.solicited(now, link.ifindex, ns)

    def _is_behind_routes(self, link: ShareLink, target: bytes) -> bool:
        """Return True if the kernel routes a target to a link without Neighbor Discovery."""
        without = {each.ifindex for each in self._links.downstream if not each.has_discovery}
        if not without or not any(_is_node_in(target, prefix) for prefix in self._prefixes):
            return False
        return self._shared.fib.route(target, link.l3_ifindex).ifindex in without

    # ---- actions

    def _perform(self, actions: Iterable[Action]) -> None:
        """Do what the learner wants done."""
        self._reporter.touch()
        for address in self._actions.perform(actions):
            self._perform(self._learner.forget(self._now(), address))

    def _routes_removed(self, addresses: set[bytes]) -> None:
        """Forget hosts whose routes were removed."""
        now = self._now()
        for address in addresses:
            self._perform(self._learner.forget(now, address))
        self._after(now)

    def _lost(self, address: bytes) -> None:
        """Ask elsewhere for an address that the kernel does not reach."""
        now = self._now()
        self._perform(self._learner.lost(now, address))
        self._after(now)

    def _departed(self, gone: Collection[tuple[int, bytes]]) -> None:
        """Look for the hosts whose MACs bridges have forgotten."""
        now = self._now()
        for link in self._links.downstream:
            for bridge, mac in gone:
                if bridge == link.l3_ifindex:
                    self._perform(self._learner.departed(now, link.ifindex, mac))
        self._after(now)

    # ---- time

    def _after(self, now: float) -> None:
        """Set the timer again, and report what has changed."""
        self._reporter.write_if_due(now, partial(self._report, now))
        if self._timer is not None:
            self._timer.cancel()
        ends = [until for until in self._shared_prefixes(now).values() if until is not None]
        due = [self._learner.next_tick(), self._relay.next_tick(now), self._reporter.next(), *ends]
        at = max(min(each for each in due if each is not None), now + _SHORTEST)
        self._timer = asyncio.get_running_loop().call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._now()
        self._perform(self._learner.tick(now))
        self._actions.send(self._relay.tick(now))
        self._take_prefixes(now)
        self._after(now)

    def _report(self, now: float) -> ShareReport:
        prefixes = self._shared_prefixes(now)
        return self._reporter.report(now, self._links, prefixes, self._learner, self._relay)


def _no_rule(target: bytes) -> None:
    """Return no rule: only frames to this interface's own MAC, or to a group, are valid."""


def _is_for_us(na: NeighborAdvertisement, mac: bytes) -> bool:
    """Return True if an advertisement was sent to this host or to all nodes."""
    return is_multicast(na.destination) or is_sent_to(na, mac)


def _relay_link(link: ShareLink) -> RelayLink:
    return RelayLink(link.ifindex, link.mac, link.link_local, link.mtu)


def _is_node_in(address: bytes, prefix: Prefix) -> bool:
    """Return True for a node's address in a prefix: not the subnet-router anycast address."""
    return prefix.covers(Prefix(address, 128)) and address != prefix.address
