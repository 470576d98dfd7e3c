"""What stands beside the answering on one interface: announcements, gateway care, hygiene.

Each is what the job wants of it, and told of what changes. All are of the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from ndxdp.addresses import NONE, Addresses
from ndxdp.care import Care, Choice
from ndxdp.job import Job
from ndxdp.ndp import Profile
from ndxdp.state import Announced, GatewayNews
from ndxdp.wire import netlink
from ndxdp.wire.announce import Announcements, Announcer
from ndxdp.wire.hygiene import Hygiene
from ndxdp.wire.netlink import Link


class Attendants:
    """Those of one job on one device, until leave().

    NdxdpError without CAP_NET_RAW, InterfaceGone if there is no such device.
    """

    def __init__(self, job: Job, link: Link) -> None:
        self._stack = contextlib.AsyncExitStack()
        self._targets: Mapping[Profile, Addresses] = {}
        self._was_up = link.up
        self._addresses = asyncio.Event()
        self._care = Care(job.interface, job.gateway)
        self._announcer = self._announce(job, link)
        self._stack.push_async_callback(self._care.end)
        if job.addresses.deprecate:
            hygiene = Hygiene(link.ifindex, job.addresses.deprecate, job.addresses.preferred)
            self.start(hygiene.run(self._addresses))

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

    def look(
        self,
        link: Link,
        gateways: frozenset[bytes],
        targets: Mapping[Profile, Addresses],
        care: Choice,
    ) -> None:
        """What there is now. targets: exact addresses that are answered for, by how they are.

        care: from which addresses the gateways may be solicited.
        """
        came_up = link.up and not self._was_up
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
        self._care.look(gateways, care, came_up=came_up)
        self._addresses.set()
        self._targets, self._was_up = targets, link.up

    @property
    def announced(self) -> Callable[[], Announced] | None:
        """Asked for the frames that told the upstream of addresses; None: nothing is announced."""
        return self._announcer.total if self._announcer else None

    def gateways(self) -> list[GatewayNews]:
        """Of the gateways that were solicited."""
        return self._care.news()

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
