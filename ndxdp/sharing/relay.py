"""Router advertisements and solicitations of a share: what is learned, relayed, answered. Pure.

Section numbers are those of RFC 4861 unless another RFC is named. Times are seconds of one
monotonic clock; addresses have 16 bytes, MACs 6. An interface is named by its index.

A client downstream sees one router, this host (see upstream_routers.py for several routers). An
advertisement is relayed as relayed_frame.py describes, when relay_port.py admits it.

This host is no default router when all routers' lifetimes are over, or the upstream link is gone:
it then sends router lifetime 0 (RFC 7084 G-4 and G-5), and answers no solicitation from what a
silent router once sent.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from ndxdp.ndp.address import ALL_NODES, ALL_NODES_MAC, UNSPECIFIED
from ndxdp.ndp.frame import TYPE_RA, eth_destination_of, eth_source_of
from ndxdp.ndp.router_message import (
    PREFERENCE,
    Parameters,
    RouterFault,
    parse_router_solicitation,
    router_message_type,
    solicit_routers,
)
from ndxdp.rules.prefix import Prefix
from ndxdp.runtime.share_report import IGNORED
from ndxdp.sharing.relay_port import RelayPort
from ndxdp.sharing.relayed_frame import relayed_frames
from ndxdp.sharing.soliciting import Soliciting
from ndxdp.sharing.upstream_router import UpstreamRouter
from ndxdp.sharing.upstream_routers import KnownRouter, UpstreamRouters

_FAREWELLS = 3
_FAREWELL_INTERVAL = 3.0
"""MAX_FINAL_RTR_ADVERTISEMENTS, and seconds between them: MIN_DELAY_BETWEEN_RAS (section 10)."""

_HEARD = 86_400.0
"""Seconds after which a silent router is no longer shown."""

_ALL_NODES = (ALL_NODES_MAC, ALL_NODES)


class RelayLink(NamedTuple):
    """An interface of a share that has a MAC.

    Attributes:
        ifindex: Its index.
        mac: Its MAC, 6 bytes.
        link_local: Its link-local address, 16 bytes; :: while there is none. Without it nothing is
            sent on a downstream link, and solicitations upstream come from ::.
        mtu: Its MTU in bytes.
    """

    ifindex: int
    mac: bytes
    link_local: bytes
    mtu: int


class Send(NamedTuple):
    """Send a frame.

    Attributes:
        ifindex: The interface.
        frame: The frame, from the Ethernet header on.
    """

    ifindex: int
    frame: bytes


class Relay:
    """The router advertisements of one share.

    Attributes:
        relayed: Advertisements that were relayed; one that goes to several links counts once.
        solicited: Solicitations from downstream that were answered.
        ignored: Messages, and prefixes in them, that were not used, by the reasons of IGNORED.
    """

    def __init__(self, *, relay: bool = True, chance: Callable[[], float] = random.random) -> None:
        """Know no link and no router.

        Args:
            relay: Send router advertisements downstream. Without it the prefixes are still learned,
                and routers solicited.
            chance: Returns a random number from 0 to below 1, for delays.
        """
        self.relayed = 0
        self.solicited = 0
        self.ignored: dict[str, int] = dict.fromkeys(IGNORED, 0)
        self._relay, self._chance = relay, chance
        self._upstream: RelayLink | None = None
        self._upstream_index = 0
        self._downstream: dict[int, RelayLink] = {}
        self._ports: dict[int, RelayPort] = {}
        self._routers = UpstreamRouters(self.ignored)
        self._soliciting = Soliciting()
        self._last: Parameters | None = None
        self._was_default = False
        self._farewells = 0
        self._farewell_due = math.inf
        self._queue: list[Send] = []

    # ---- input -----------------------------------------------------------------------------------

    def set_links(
        self, now: float, upstream: RelayLink | None, downstream: Mapping[int, RelayLink]
    ) -> None:
        """Set the interfaces of the share; frames that follow from the change come by tick().

        A downstream link that is new or has changed is sent the current advertisements. Without an
        upstream link, clients learn that this host is no default router (RFC 7084 G-5); prefixes
        stay until their lifetimes end. Another index upstream is another link: its routers and
        prefixes are new.

        Args:
            now: The time.
            upstream: The upstream link; None while it is absent or down.
            downstream: The downstream links with MACs, by index.
        """
        former, self._upstream = self._upstream, upstream
        if not upstream:
            self._routers.lose()
        elif not former or former.ifindex != upstream.ifindex:
            self._soliciting.start(now)
        if upstream and upstream.ifindex != self._upstream_index:
            if self._upstream_index:
                self._routers.clear()
            self._upstream_index = upstream.ifindex
        self._set_downstream(now, downstream)
        self._follow_default(now)

    def restore(self, now: float, prefixes: Mapping[Prefix, float | None]) -> None:
        """Take prefixes that a former process knew, before the first advertisement is heard.

        They are shared at once. A prefix that the routers no longer advertise is withdrawn
        downstream like any other (RFC 9096 section 3.5 asks for that after a restart, too).

        Args:
            now: The time.
            prefixes: The prefixes, with the end of the valid lifetime; None for no end.
        """
        self._routers.restore(now, prefixes)

    def heard(self, now: float, ifindex: int, frame: bytes) -> list[Send]:
        """Take a frame that came by an interface of the share, and return the frames to send.

        Args:
            now: The time.
            ifindex: The interface.
            frame: The frame, untagged. Anything but a router advertisement or solicitation is
                ignored, and so are frames of this host itself, and those to another host: a router
                may advertise to each host what is only for that one (RFC 8273).
        """
        kind = router_message_type(frame)
        upstream = self._upstream
        if upstream and ifindex == upstream.ifindex:
            if kind == TYPE_RA and _is_for(upstream, frame):
                return self._hear_router(now, frame)
            return []
        link = self._downstream.get(ifindex)
        if not link or not kind or not _is_for(link, frame):
            return []
        if kind == TYPE_RA:
            self.ignored["downstream"] += 1
        elif self._relay:
            self._hear_client(now, ifindex, frame)
        return []

    # ---- output ----------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Send]:
        """Return the frames that are due."""
        sends, self._queue = self._queue, []
        self._follow_default(now)
        if self._farewell_due <= now:
            sends += self._farewell(self._downstream.values())
            self._farewells -= 1
            self._farewell_due = now + _FAREWELL_INTERVAL if self._farewells else math.inf
        current = self._routers.current(now)
        relayed: set[bytes] = set()
        for ifindex, port in self._ports.items():
            everything = port.multicast_is_due(now)
            due = port.due_routers(now)
            for router in current:
                if everything or router.address in due:
                    sends += self._advertise(now, ifindex, router)
            relayed.update(router.address for router in current if router.address in due)
            for asked in port.due_answers(now):
                for router in current:
                    sends += self._advertise(now, ifindex, router, to=(asked.peer, asked.source))
        self.relayed += len(relayed)
        return sends + self._solicit(now)

    def next_tick(self, now: float) -> float | None:
        """Return when tick() is to be called next, at the earliest `now`; None for never.

        Each call of another method may change the answer. prefixes() may have changed by then, too.
        """
        times = [self._farewell_due, self._routers.shared.next_end(now)]
        times += [port.next_due() for port in self._ports.values()]
        if self._queue:
            times.append(now)
        if self._was_default:
            times.append(self._routers.default_until())
        if self._upstream:
            idle = self._soliciting.due == math.inf
            times.append(self._routers.solicit_at() if idle else self._soliciting.due)
        first = min(times)
        return None if first == math.inf else max(now, first)

    def withdraw(self, now: float, ifindexes: Collection[int]) -> list[Send]:
        """Return advertisements with router lifetime 0, for links that leave the share (6.2.5).

        A daemon that only stops does not call this: another one follows it.
        """
        if not self._routers.current(now):
            return []
        links = [link for ifindex, link in self._downstream.items() if ifindex in ifindexes]
        return self._farewell(links)

    def prefixes(self, now: float) -> dict[Prefix, float | None]:
        """Return the prefixes that routers advertise for use, with the end of the valid lifetime.

        Those are the on-link ones (the L flag), and those of which nodes form addresses (the A
        flag). The end is None for an infinite lifetime. A prefix whose lifetime is over is absent.
        """
        return self._routers.shared.left(now)

    def routers(self, now: float) -> list[KnownRouter]:
        """Return the routers that were heard in the last day, in the order of their addresses."""
        return [each for each in self._routers.known() if now - each.heard < _HEARD]

    # ---- how -------------------------------------------------------------------------------------

    def _set_downstream(self, now: float, downstream: Mapping[int, RelayLink]) -> None:
        former, self._downstream = self._downstream, dict(downstream)
        if not self._relay:
            return
        self._ports = {ifindex: self._ports.get(ifindex, RelayPort()) for ifindex in downstream}
        for ifindex, link in downstream.items():
            old = former.get(ifindex)
            if link == old or link.link_local == UNSPECIFIED:
                continue
            if old and old.link_local not in (UNSPECIFIED, link.link_local):
                # Clients have the old address as their default router.
                self._queue += self._farewell([link._replace(link_local=old.link_local)])
            if self._routers.current(now):
                self._ports[ifindex].announce(now, self._chance())

    def _follow_default(self, now: float) -> None:
        """Notice that the last default router has ended, or that there is one again."""
        is_default = self._routers.is_default(now)
        if is_default:
            self._farewell_due = math.inf
        elif self._was_default:
            self._farewells, self._farewell_due = _FAREWELLS, now
        self._was_default = is_default

    def _hear_router(self, now: float, frame: bytes) -> list[Send]:
        own = [link.link_local for link in (self._upstream, *self._downstream.values()) if link]
        self._follow_default(now)
        heard = self._routers.hear(now, frame, own)
        if not heard:
            return []
        self._last = heard.router.parameters
        # Where the last default router ends by this advertisement, relaying that is the farewell.
        self._was_default = self._routers.is_default(now)
        self._follow_default(now)
        if now < self._routers.solicit_at():
            self._soliciting.stop()
        sends = []
        admitted = [
            ifindex
            for ifindex, port in self._ports.items()
            if port.admit(now, heard.router.address)
        ]
        for ifindex in admitted:
            sends += self._advertise(now, ifindex, heard.router, heard.options)
        self.relayed += bool(sends)
        self.ignored["rate"] += bool(self._ports) and not admitted
        return sends

    def _hear_client(self, now: float, ifindex: int, frame: bytes) -> None:
        asked = parse_router_solicitation(frame)
        if isinstance(asked, RouterFault):
            self.ignored[asked.value] += 1
            return
        if self._upstream and not self._routers.is_default(now):
            self._soliciting.hasten(now)
        if not self._routers.current(now):
            return
        if self._ports[ifindex].ask(now, asked, self._chance()):
            self.solicited += 1
        else:
            self.ignored["rate"] += 1

    def _solicit(self, now: float) -> list[Send]:
        if not self._upstream:
            return []
        if self._soliciting.due == math.inf and now >= self._routers.solicit_at():
            self._soliciting.start(now)
        if self._soliciting.due > now:
            return []
        self._soliciting.sent(now, self._chance())
        frame = solicit_routers(self._upstream.mac, self._upstream.link_local)
        return [Send(self._upstream.ifindex, frame)]

    def _advertise(
        self,
        now: float,
        ifindex: int,
        router: UpstreamRouter,
        options: Iterable[bytes] | None = None,
        to: tuple[bytes, bytes] = _ALL_NODES,
    ) -> list[Send]:
        """Return a router's advertisement; without `options`, what it has advertised last."""
        parameters = self._routers.parameters(now, router)
        merged = self._routers.options(now, router, options)
        return self._sends(self._downstream[ifindex], parameters, merged, to)

    def _farewell(self, links: Iterable[RelayLink]) -> list[Send]:
        """Return advertisements with router lifetime 0, if there were others before."""
        if not self._last or not self._relay:
            return []
        parameters = self._last._replace(lifetime=0, flags=self._last.flags & ~PREFERENCE)
        return [send for link in links for send in self._sends(link, parameters, (), _ALL_NODES)]

    def _sends(
        self,
        link: RelayLink,
        parameters: Parameters,
        options: Iterable[bytes],
        to: tuple[bytes, bytes],
    ) -> list[Send]:
        if link.link_local == UNSPECIFIED:
            return []
        mtus = self._upstream.mtu if self._upstream else link.mtu, link.mtu
        frames = relayed_frames(link.mac, link.link_local, mtus, parameters, options, to)
        return [Send(link.ifindex, frame) for frame in frames]


def _is_for(link: RelayLink, frame: bytes) -> bool:
    """Return True for a frame to the link's MAC or to a group, unless this host has sent it."""
    destination = eth_destination_of(frame)
    reached = destination == link.mac or bool(destination[0] & 1)
    return reached and eth_source_of(frame) != link.mac
