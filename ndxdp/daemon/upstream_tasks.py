"""Tasks that accompany answering: announcements, gateway care, and deprecated addresses.

Use all objects in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ndxdp.backoff import persist
from ndxdp.config.model import Announce
from ndxdp.daemon.guest_watch import GuestWatch
from ndxdp.daemon.lease_guard import LeaseGuard
from ndxdp.daemon.shared_descriptors import Shared
from ndxdp.daemon.spec import InterfaceSpec
from ndxdp.errors import NdxdpError
from ndxdp.ndp.profile import Profile
from ndxdp.netlink import links
from ndxdp.netlink.links import Link
from ndxdp.netlink.netns import netns
from ndxdp.rules.address_set import EMPTY, AddressSet
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime.daemon_status import Announced, GatewayStatus
from ndxdp.store import lifetimes
from ndxdp.store.lifetimes import Record
from ndxdp.upstream.announce import Announcer
from ndxdp.upstream.deprecate import Deprecator
from ndxdp.upstream.gateways import Choice, GatewayKeepalives

log = logging.getLogger(__name__)

_SUSPEND_PERIOD = 5.0  # seconds between checks whether the machine was suspended
_SUSPEND_MIN = 0.5  # seconds: clocks that are read one after the other differ by less

_NONE: Mapping[Profile, AddressSet] = {}


class AddressKeeper:
    """Deprecates addresses of one device as a specification wants it, until end()."""

    def __init__(
        self, spec: InterfaceSpec, link: Link, directory: Path, unanswered: str = ""
    ) -> None:
        """Begin to deprecate addresses, or restore those that a former specification deprecated.

        Args:
            spec: The interface's specification.
            link: The interface.
            directory: Where former lifetimes of addresses are noted.
            unanswered: The reason for which nothing is answered on the interface, for `status`.
        """
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._record: Record | None = None
        wanted = spec.addresses
        if not wanted.deprecate and not lifetimes.exists(directory, spec.interface):
            return
        try:
            self._record = Record(directory, spec.interface, link.ifindex, netns())
            self._record.describe(wanted.preferred, wanted.deprecate, unanswered)
            self._record.save()
        except (NdxdpError, OSError) as error:
            log.warning(
                "%s: cannot save the former lifetimes of addresses: %s; they cannot be restored"
                " after this process has ended",
                spec.interface,
                error,
            )
        self._deprecator = Deprecator(
            link.ifindex,
            wanted.deprecate,
            wanted.preferred,
            name=spec.interface,
            record=self._record,
        )
        self._name, self._ifindex = link.name, link.ifindex
        work = self._deprecator.run(self._changed) if wanted.deprecate else self._restore()
        self._task = asyncio.ensure_future(work)

    def notice_changes(self) -> None:
        """Compare the interface's addresses again, as they may have changed."""
        self._changed.set()

    async def _restore(self) -> None:
        """Restore what a former specification changed; after a failure `ndxdp detach` can."""
        try:
            await asyncio.to_thread(self._deprecator.apply)
        except (NdxdpError, OSError) as error:
            log.warning("%s: cannot restore addresses: %s", self._name, error)
        if self._record:
            await asyncio.to_thread(self._record.close)

    async def end(self) -> None:
        """End, and leave the addresses as they are; deprecate.restore() restores them."""
        if self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        # In the executor's one thread, where the last comparison may still be running.
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        """Close the record; discard it if the device is absent or has another name now."""
        try:
            name = socket.if_indextoname(self._ifindex)
        except OSError:
            name = ""
        with contextlib.suppress(NdxdpError, OSError):
            if not name:
                self._deprecator.forget()
            elif name != self._name:
                Deprecator(self._ifindex, (), name=name, record=self._record).apply()
        if self._record:
            self._record.close()


class UpstreamTasks:
    """The upstream tasks of one specification on one device, until end()."""

    def __init__(
        self,
        spec: InterfaceSpec,
        link: Link,
        directory: Path,
        wake: Callable[[], None] = lambda: None,
        suspended: Callable[[], float] | None = None,
        shared: Shared | None = None,
        guard: LeaseGuard | None = None,
    ) -> None:
        """Begin the tasks.

        Args:
            spec: The interface's specification.
            link: The interface.
            directory: Where former lifetimes of addresses are noted.
            wake: Called when follow() is wanted without a change of the network.
            suspended: Returns the seconds for which the machine has been suspended so far.
            shared: What all uplinks share; without it, no neighbours are announced.
            guard: Decides which addresses frames may be sent for; without it, there are no leased
                rules.

        Raises:
            NdxdpError: This process does not have CAP_NET_RAW.
            InterfaceGone: The interface is absent.
        """
        self._stack = contextlib.AsyncExitStack()
        self._interface = spec.interface
        self._targets: Mapping[Profile, AddressSet] = _NONE
        self._leased: Mapping[Profile, AddressSet] = _NONE
        self._carrier_ups = link.carrier_ups
        self._operational = link.operational
        self._interrupted = self._paused = False
        self._wake, self._suspended = wake, suspended or suspended_time
        self._may_send = guard.may_send if guard else _always
        self._care = GatewayKeepalives(spec.interface, spec.gateway, self._may_send)
        self._announcer = self._announce(spec, link)
        self._stack.push_async_callback(self._care.end)
        self._addresses = AddressKeeper(spec, link, directory)
        self._stack.push_async_callback(self._addresses.end)
        self._guests = self._watch_guests(spec, link, shared) if shared else None
        self._takeovers = self._announce_takeovers(spec, link, guard) if guard else None
        if self._announcer or self._takeovers or spec.gateway.keep:
            self.start(self._notice_suspends)

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine until end(), again after a pause if it fails."""
        task = asyncio.ensure_future(persist(log, self._interface, work))

        async def end() -> None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        self._stack.push_async_callback(end)

    async def end(self) -> None:
        """End all tasks."""
        await self._stack.aclose()

    def pause(self, paused: bool) -> None:
        """Announce nothing while answering is paused, and all addresses once it is resumed."""
        self._paused = paused
        self._suspend_announcers()

    def announce_leased(self) -> None:
        """Announce all leased addresses again: until now, the lease had lapsed."""
        if self._takeovers:
            self._takeovers.announce_all()

    def interrupt(self) -> None:
        """Treat the link, in the next follow(), as if it had lost its carrier and got it again."""
        self._interrupted = True

    def follow(
        self,
        link: Link,
        gateways: frozenset[bytes],
        targets: Mapping[Profile, AddressSet],
        care: Choice,
        leased: Mapping[Profile, AddressSet] = _NONE,
    ) -> None:
        """Bring the tasks in step with the network.

        Args:
            link: The interface. Its count of carrier changes shows whether it has lost its carrier
                and got it again since the last call.
            gateways: Addresses (16 bytes each) of the gateways.
            targets: Exact addresses that are answered for, by profile, except leased ones.
            care: The addresses from which gateways may be solicited.
            leased: The shared addresses that this host holds, by profile.
        """
        if not link.operational or link.carrier_ups != self._carrier_ups:
            self._interrupted = True
        came_up = link.operational and self._interrupted
        if came_up:
            self._interrupted = False
        self._carrier_ups, self._operational = link.carrier_ups, link.operational
        self._suspend_announcers()
        for announcer, before, now in (
            (self._takeovers, self._leased, leased),
            (self._announcer, self._targets, targets),
        ):
            if announcer is None:
                continue
            announcer.set_mac(link.mac)
            announcer.set_gateways(gateways)
            if now is not before:
                for profile, addresses in before.items():
                    announcer.forget(addresses - now.get(profile, EMPTY))
                for profile, addresses in now.items():
                    announcer.announce(addresses - before.get(profile, EMPTY), profile)
            if came_up:
                announcer.announce_all()
        self._care.follow(gateways, care, came_up=came_up)
        self._addresses.notice_changes()
        self._targets, self._leased = targets, leased

    def follow_guests(self, rules: Rules, link: Link) -> None:
        """Announce the neighbours behind the host, if that is wanted; call this before follow().

        Args:
            rules: All rules of the interface.
            link: The interface.
        """
        if self._guests:
            self._guests.follow(rules, link)

    @property
    def announced(self) -> Callable[[], Announced] | None:
        """A function that returns the count of announcements; None if none are wanted."""
        return self._total if self._announcer or self._takeovers else None

    def _total(self) -> Announced:
        """Return the counts of announcements, and of neighbours that are announced."""
        totals = [each.total() for each in (self._announcer, self._takeovers) if each]
        total = Announced(sum(each.sent for each in totals), sum(each.failed for each in totals))
        if not self._guests:
            return total
        guests = self._guests.guests
        return total._replace(neighbours=guests.known, arrivals=guests.arrivals)

    def gateways(self) -> list[GatewayStatus]:
        """Return the state of each gateway that was solicited."""
        return self._care.statuses()

    def _suspend_announcers(self) -> None:
        """Suspend announcements while they would be lost or wrong, and resume them after that."""
        for announcer in (self._announcer, self._takeovers):
            if announcer:
                announcer.set_suspended(self._paused or not self._operational)

    async def _notice_suspends(self) -> None:
        """Treat the link as interrupted after the machine was suspended."""
        before = self._suspended()
        while True:
            await asyncio.sleep(_SUSPEND_PERIOD)
            now = self._suspended()
            if now - before > _SUSPEND_MIN:
                self.interrupt()
                self._wake()
            before = now

    def _watch_guests(self, spec: InterfaceSpec, link: Link, shared: Shared) -> GuestWatch | None:
        """Begin to announce neighbours behind the host, if the specification wants that."""
        if not self._announcer or not spec.announce.neighbours:
            return None
        with links.interface_errors(link.name):
            watch = GuestWatch(shared, self._announcer, spec.announce.rate, link)
        self._stack.callback(watch.close)
        self.start(watch.run)
        self.start(watch.run_surveys)
        return watch

    def _announce(self, spec: InterfaceSpec, link: Link) -> Announcer | None:
        """Begin to announce addresses, if the specification wants that."""
        wanted = spec.announce
        if not (wanted.solicit_gateway or wanted.probe or wanted.advertise):
            return None
        return self._start_announcer(link, wanted, self._may_send)

    def _announce_takeovers(
        self, spec: InterfaceSpec, link: Link, guard: LeaseGuard
    ) -> Announcer | None:
        """Begin to announce shared addresses that this host acquires, if there may be any.

        They are always advertised, so that the upstream's routers forget the former holder.
        """
        if not spec.segments:
            return None
        wanted = replace(spec.announce, advertise=True, neighbours=False)
        return self._start_announcer(link, wanted, guard.holds)

    def _start_announcer(
        self, link: Link, what: Announce, may_send: Callable[[bytes], bool]
    ) -> Announcer:
        with links.interface_errors(link.name):
            announcer = Announcer(link.ifindex, link.mac, what, may_send=may_send)
        self._stack.callback(announcer.close)
        self.start(announcer.run)
        return announcer


def _always(address: bytes) -> bool:
    return True


def suspended_time() -> float:
    """Return the seconds for which the machine has been suspended since it was booted."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
