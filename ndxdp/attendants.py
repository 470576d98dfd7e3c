"""What stands beside the answering on one interface: announcements, gateway care, hygiene.

Each is what the job wants of it, and told of what changes. All are of the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from ndxdp.addresses import NONE, Addresses
from ndxdp.config import Gateway
from ndxdp.job import Job
from ndxdp.ndp import Profile
from ndxdp.state import Announced, GatewayNews
from ndxdp.wire import netlink
from ndxdp.wire.announce import Announcements, Announcer
from ndxdp.wire.gateway import GatewayCare
from ndxdp.wire.hygiene import Hygiene
from ndxdp.wire.netlink import Link

_SUSPEND_LOOK = 5.0  # seconds between looks at whether the machine was suspended
_SUSPEND_MIN = 0.5  # seconds: clocks that are read one after the other differ by less


class Attendants:
    """The attendants of one job on one device, until leave().

    look_again: called when look() is wanted without a change of the network. suspended: seconds
    that the machine has been suspended so far.

    NdxdpError without CAP_NET_RAW, InterfaceGone if there is no such device.
    """

    def __init__(
        self,
        job: Job,
        link: Link,
        look_again: Callable[[], None] = lambda: None,
        suspended: Callable[[], float] | None = None,
    ) -> None:
        self._stack = contextlib.AsyncExitStack()
        self._targets: Mapping[Profile, Addresses] = {}
        self._carrier_ups = link.carrier_ups
        self._operational = link.operational
        self._interrupted = self._paused = False
        self._look_again, self._suspended = look_again, suspended or suspended_time
        self._addresses = asyncio.Event()
        self._care = _Care(link.ifindex, job.gateway)
        self._announcer = self._announce(job, link)
        self._stack.push_async_callback(self._care.end)
        if job.addresses.deprecate:
            hygiene = Hygiene(link.ifindex, job.addresses.deprecate, job.addresses.preferred)
            self.start(hygiene.run(self._addresses))
        if self._announcer or job.gateway.keep:
            self.start(self._notice_suspends())

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it beside, until the attendants leave."""
        task = asyncio.ensure_future(work)

        async def end() -> None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        self._stack.push_async_callback(end)

    async def leave(self) -> None:
        await self._stack.aclose()

    def pause(self, paused: bool) -> None:
        """Announce nothing while answering is paused, and all addresses once it is resumed."""
        self._paused = paused
        self._hold()

    def interrupt(self) -> None:
        """Treat the link as if its carrier had gone and come back by the next look()."""
        self._interrupted = True

    def look(
        self, link: Link, gateways: frozenset[bytes], targets: Mapping[Profile, Addresses]
    ) -> None:
        """Bring the attendants in step with the network.

        targets: exact addresses that are answered for, by how they are. The link may have lost
        its carrier and got it again since the last call: its count says so.
        """
        if not link.operational or link.carrier_ups != self._carrier_ups:
            self._interrupted = True
        came_up = link.operational and self._interrupted
        if came_up:
            self._interrupted = False
        self._carrier_ups, self._operational = link.carrier_ups, link.operational
        self._hold()
        if self._announcer:
            self._announcer.set_mac(link.mac)
            self._announcer.set_gateways(gateways)
            if targets is not self._targets:
                for profile, addresses in self._targets.items():
                    self._announcer.forget(addresses - targets.get(profile, NONE))
                for profile, addresses in targets.items():
                    self._announcer.announce(addresses - self._targets.get(profile, NONE), profile)
            if came_up:
                self._announcer.announce_all()
        # A gateway that is solicited from an address sends the address's packets here.
        solicited = frozenset[bytes]() if self._paused else gateways
        self._care.look(link, solicited, targets, came_up=came_up)
        self._addresses.set()
        self._targets = targets

    @property
    def announced(self) -> Callable[[], Announced] | None:
        """Asked for the frames that told the upstream of addresses; None: nothing is announced."""
        return self._announcer.total if self._announcer else None

    def gateways(self) -> list[GatewayNews]:
        """Of the gateways that were solicited."""
        return self._care.news()

    def _hold(self) -> None:
        if self._announcer:
            self._announcer.hold(self._paused or not self._operational)

    async def _notice_suspends(self) -> None:
        """Have the link looked at as interrupted when the machine was suspended."""
        before = self._suspended()
        while True:
            await asyncio.sleep(_SUSPEND_LOOK)
            now = self._suspended()
            if now - before > _SUSPEND_MIN:
                self.interrupt()
                self._look_again()
            before = now

    def _announce(self, job: Job, link: Link) -> Announcer | None:
        wanted = job.announce
        if not (wanted.solicit_gateway or wanted.probe or wanted.advertise):
            return None
        what = Announcements(
            probe=wanted.probe,
            solicit_gateway=wanted.solicit_gateway,
            advertise=wanted.advertise,
            rate=wanted.rate,
            interval=wanted.interval,
        )
        with netlink.present(link.name):
            announcer = Announcer(link.ifindex, link.mac, what)
        self._stack.callback(announcer.close)
        self.start(announcer.run())
        return announcer


def suspended_time() -> float:
    """Return the seconds that the machine has been suspended since it was booted."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class _Care:
    """Gateway care for whichever gateways there are."""

    def __init__(self, ifindex: int, wanted: Gateway) -> None:
        self._ifindex, self._wanted = ifindex, wanted
        self._cared: dict[bytes, tuple[GatewayCare, asyncio.Task[None]]] = {}

    def look(
        self,
        link: Link,
        gateways: frozenset[bytes],
        targets: Mapping[Profile, Addresses],
        *,
        came_up: bool,
    ) -> None:
        if not self._wanted.keep:
            return
        least = (next(iter(addresses)) for addresses in targets.values())
        source = self._wanted.source or min(least, default=None)
        for gateway in set(self._cared) - gateways:
            care, task = self._cared.pop(gateway)
            task.cancel()
            care.close()
        if source is None:
            return
        for gateway in gateways:
            if gateway in self._cared:
                care, _ = self._cared[gateway]
                care.set_mac(link.mac)
                if came_up:
                    care.wake()
                continue
            with netlink.present(link.name):
                care = GatewayCare(
                    self._ifindex, gateway, source, link.mac, interval=self._wanted.interval
                )
            self._cared[gateway] = care, asyncio.ensure_future(care.run())

    def news(self) -> list[GatewayNews]:
        each = [care.status() for care, _ in list(self._cared.values())]
        return [GatewayNews(one.silent, one.seen) for one in each if one.asked]

    async def end(self) -> None:
        for care, task in self._cared.values():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            care.close()
