"""What stands beside the answering on one interface: announcements, gateway care, hygiene.

Each is what the job wants of it, and told of what changes. All are of the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from ndxdp.backoff import persist
from ndxdp.daemon.spec import Job
from ndxdp.errors import NdxdpError
from ndxdp.ndp.profile import Profile
from ndxdp.netlink import links
from ndxdp.netlink.links import Link
from ndxdp.netlink.netns import netns
from ndxdp.rules.address_set import EMPTY, AddressSet
from ndxdp.runtime.daemon_status import Announced, GatewayStatus
from ndxdp.store import lifetimes
from ndxdp.store.lifetimes import Record
from ndxdp.upstream.announce import Announcements, Announcer
from ndxdp.upstream.deprecate import Deprecator
from ndxdp.upstream.gateways import Choice, GatewayKeepalives

log = logging.getLogger(__name__)

_SUSPEND_LOOK = 5.0  # seconds between looks at whether the machine was suspended
_SUSPEND_MIN = 0.5  # seconds: clocks that are read one after the other differ by less


class AddressKeeper:
    """Address hygiene of one job on one device, until end().

    It also restores what an earlier job changed, where this one wants nothing of the kind. Former
    lifetimes are noted below `directory`. unanswered: why nothing is answered on the interface.
    """

    def __init__(self, job: Job, link: Link, directory: Path, unanswered: str = "") -> None:
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._record: Record | None = None
        wanted = job.addresses
        if not wanted.deprecate and not lifetimes.exists(directory, job.interface):
            return
        try:
            self._record = Record(directory, job.interface, link.ifindex, netns())
            self._record.describe(wanted.preferred, wanted.deprecate, unanswered)
            self._record.save()
        except (NdxdpError, OSError) as error:
            log.warning(
                "%s: what its addresses were before is forgotten when this process ends: %s",
                job.interface,
                error,
            )
        self._hygiene = Deprecator(
            link.ifindex,
            wanted.deprecate,
            wanted.preferred,
            name=job.interface,
            record=self._record,
        )
        self._name, self._ifindex = link.name, link.ifindex
        work = self._hygiene.run(self._changed) if wanted.deprecate else self._restore()
        self._task = asyncio.ensure_future(work)

    def look(self) -> None:
        """Notice that the interface's addresses may have changed."""
        self._changed.set()

    async def _restore(self) -> None:
        """Restore what an earlier job changed; `ndxdp detach` can do it where this fails."""
        try:
            await asyncio.to_thread(self._hygiene.apply)
        except (NdxdpError, OSError) as error:
            log.warning("%s: its addresses are not restored: %s", self._name, error)
        if self._record:
            await asyncio.to_thread(self._record.close)

    async def end(self) -> None:
        """Leave the addresses as they are; `hygiene.restore()` restores them."""
        if self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        # In the executor's one thread, where the last look may still be at work.
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        """Close the record; a device that has gone, or has another name now, is done with."""
        try:
            name = socket.if_indextoname(self._ifindex)
        except OSError:
            name = ""
        with contextlib.suppress(NdxdpError, OSError):
            if not name:
                self._hygiene.forget()
            elif name != self._name:
                Deprecator(self._ifindex, (), name=name, record=self._record).apply()
        if self._record:
            self._record.close()


class Attendants:
    """The attendants of one job on one device, until leave().

    look_again: called when look() is wanted without a change of the network. suspended: seconds
    that the machine has been suspended so far.

    directory: where former lifetimes of addresses are noted. NdxdpError without CAP_NET_RAW,
    InterfaceGone if there is no such device.
    """

    def __init__(
        self,
        job: Job,
        link: Link,
        directory: Path,
        look_again: Callable[[], None] = lambda: None,
        suspended: Callable[[], float] | None = None,
    ) -> None:
        self._stack = contextlib.AsyncExitStack()
        self._interface = job.interface
        self._targets: Mapping[Profile, AddressSet] = {}
        self._carrier_ups = link.carrier_ups
        self._operational = link.operational
        self._interrupted = self._paused = False
        self._look_again, self._suspended = look_again, suspended or suspended_time
        self._care = GatewayKeepalives(job.interface, job.gateway)
        self._announcer = self._announce(job, link)
        self._stack.push_async_callback(self._care.end)
        self._addresses = AddressKeeper(job, link, directory)
        self._stack.push_async_callback(self._addresses.end)
        if self._announcer or job.gateway.keep:
            self.start(self._notice_suspends)

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run it beside, until the attendants leave; again after a pause if it fails."""
        task = asyncio.ensure_future(persist(log, self._interface, work))

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
        self,
        link: Link,
        gateways: frozenset[bytes],
        targets: Mapping[Profile, AddressSet],
        care: Choice,
    ) -> None:
        """Bring the attendants in step with the network.

        targets: exact addresses that are answered for, by how they are. care: from which
        addresses the gateways may be solicited. The link may have lost
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
                    self._announcer.forget(addresses - targets.get(profile, EMPTY))
                for profile, addresses in targets.items():
                    self._announcer.announce(addresses - self._targets.get(profile, EMPTY), profile)
            if came_up:
                self._announcer.announce_all()
        self._care.look(gateways, care, came_up=came_up)
        self._addresses.look()
        self._targets = targets

    @property
    def announced(self) -> Callable[[], Announced] | None:
        """Asked for the frames that told the upstream of addresses; None: nothing is announced."""
        return self._announcer.total if self._announcer else None

    def gateways(self) -> list[GatewayStatus]:
        """Of the gateways that were solicited."""
        return self._care.news()

    def _hold(self) -> None:
        if self._announcer:
            self._announcer.set_suspended(self._paused or not self._operational)

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
        with links.interface_errors(link.name):
            announcer = Announcer(link.ifindex, link.mac, what)
        self._stack.callback(announcer.close)
        self.start(announcer.run)
        return announcer


def suspended_time() -> float:
    """Return the seconds that the machine has been suspended since it was booted."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
