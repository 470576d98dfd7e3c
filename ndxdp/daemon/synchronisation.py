"""An attachment kept in step: with the network, with commands, and with the upstream."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from ndxdp.daemon import reconcile
from ndxdp.daemon.admission import Admission
from ndxdp.daemon.follower import Follower
from ndxdp.daemon.heartbeat import Heartbeats
from ndxdp.daemon.lease_guard import LeaseGuard
from ndxdp.daemon.lifecycle import Answering
from ndxdp.daemon.packet_loop import PacketLoop
from ndxdp.daemon.resolver import Resolver
from ndxdp.daemon.rival_watch import RivalWatch
from ndxdp.daemon.shared_descriptors import Shared
from ndxdp.daemon.state_directory import DirectoryId, directory_id
from ndxdp.daemon.uplink_groups import Targets, UplinkGroups
from ndxdp.daemon.uplink_state import UplinkState
from ndxdp.daemon.upstream_tasks import UpstreamTasks
from ndxdp.errors import InterfaceGone, LimitReached, twice
from ndxdp.netlink.links import Link
from ndxdp.runtime.daemon_status import DaemonStatus
from ndxdp.session.kernel_tables import LinkNeighbours

log = logging.getLogger(__name__)

_CHECK_PERIOD = 5.0
"""Seconds between checks for an unmount or a forced detachment, which no event reports."""

_REMOVAL_TIME = 0.2
"""Seconds that `rm -r` may take; inotify reports each removal."""


class Synchronisation:
    """Keeps one attachment in step.

    Call the methods in the event loop's thread.

    Attributes:
        answering: The attachment.
        follower: What reads the network and writes the maps.
    """

    def __init__(
        self, state: UplinkState, answering: Answering, admission: Admission, shared: Shared
    ) -> None:
        """Do nothing until running().

        Args:
            state: The uplink's state.
            answering: The attachment.
            admission: Leaves out the rules that are too broad.
            shared: What all uplinks share.
        """
        self.answering = answering
        self.follower = Follower(
            state, answering, admission, shared.tables, asyncio.get_running_loop()
        )
        self._state, self._shared = state, shared
        self._watched: DirectoryId | None = None
        self._mac = b""
        self._announced: tuple[Targets, Targets] = ({}, {})
        self._guard = LeaseGuard(answering.session.maps)

    @contextlib.asynccontextmanager
    async def running(
        self,
        resolver: Resolver,
        packet_loop: PacketLoop | None,
        heartbeats: Heartbeats,
        status: DaemonStatus,
        directory: Path,
    ) -> AsyncIterator[None]:
        """Keep groups, neighbours, heartbeats and the upstream tasks during the block.

        Args:
            resolver: Resolves unknown neighbours.
            packet_loop: Answers, if this process does.
            heartbeats: Writes heartbeats, if the specification wants them.
            status: The daemon's status.
            directory: Where former lifetimes of addresses are noted.

        Raises:
            InterfaceGone: The interface is absent.
        """
        spec, answering, shared = self._state.spec, self.answering, self._shared
        self._watched = None
        link = await shared.call(self.follower.find)

        def note_gateways(macs: frozenset[bytes]) -> None:
            resolver.gateways = macs
            if packet_loop is not None:
                packet_loop.set_gateways(macs)

        async with contextlib.AsyncExitStack() as opened:
            self._watching = opened.enter_context(contextlib.ExitStack())
            self._groups = UplinkGroups(self._state, shared, status)
            opened.push_async_callback(self._groups.close)
            self._neighbours = LinkNeighbours(
                answering.session.maps,
                shared.fib,
                shared.follow_neighbours,
                note_gateways,
                self._state.changed.set,
            )
            opened.callback(self._neighbours.close)
            opened.enter_context(shared.tables.serving(self.follower))
            self._mac = link.mac
            watch = RivalWatch(
                spec.interface,
                link.ifindex,
                lambda: self._mac,
                may_answer=lambda: shared.lease.is_valid,
                on_rival=status.changed,
            )
            opened.enter_context(self._state.noting_rivals(watch))
            resolver.holds = self._guard.holds
            self._tasks = UpstreamTasks(
                spec,
                link,
                directory,
                self._state.changed.set,
                shared=shared,
                guard=self._guard,
            )
            opened.push_async_callback(self._tasks.end)
            announced, gateways = self._tasks.announced, self._tasks.gateways
            opened.enter_context(status.attending(spec.interface, announced, gateways))
            self._tasks.start(self._notice_removal)
            await opened.enter_async_context(self._heartbeat(heartbeats))
            yield

    async def round(self) -> None:
        """Do the pending work. Failures are logged and retried later, and answering goes on.

        Raises:
            InterfaceGone: The interface is absent.
        """
        health, pending = self._state.health, self._state.pending
        if health.repair.is_due:
            with health.guarding(health.repair):
                await self._repair()
        if health.watching.is_due and not health.repair.problem:
            with health.guarding(health.watching):
                self._watch()
        if pending.comparison:
            pending.comparison = False
            self.follower.compare_again()
        link: Link | None = None
        # If the rules do not fit, the daemon still follows the MAC, the holes and the gateways.
        if pending.rules and health.rules.is_due:
            pending.rules = False  # before they are read: others may arrive while these are written
            with health.guarding(health.rules):
                link = await self._write_rules()
            if health.rules.problem:
                if pending.rules:  # others have arrived, about which the failure says nothing
                    health.rules.hurry()
                pending.rules = True
        with health.guarding(health.following):
            await self._follow(link)

    async def _repair(self) -> None:
        """Restore removed pins or files, once their removal has ended."""
        directory = self.answering.directory
        if directory.is_damaged():
            await asyncio.sleep(_REMOVAL_TIME)
            await self._shared.call(directory.repair)

    def _watch(self) -> None:
        """Watch the interface's directory for changes by commands, and for removals."""
        path, state = self.answering.directory.path, self._state
        found = directory_id(path)
        if found == self._watched:
            return

        def on_change() -> None:
            state.pending.comparison = True
            state.changed.set()

        self._watching.close()
        try:
            self._watching.enter_context(self._shared.watching(path, on_change))
        except OSError as error:
            limit = "instances" if error.errno == errno.EMFILE else "watches"
            raise LimitReached(
                f"cannot notice changes by commands (inotify: {error.strerror})",
                f"raise the limit: {twice(f'fs.inotify.max_user_{limit}')}",
            ) from error
        self._watched = found

    async def _write_rules(self) -> Link:
        """Write rules and everything else that has changed."""
        desired_by = self._state.wanted.by_origin(self._state.spec)
        return await self._shared.call(partial(self.follower.follow, desired_by))

    async def _follow(self, link: Link | None) -> None:
        """Follow the network.

        Args:
            link: The interface, if the maps were written in this round already.
        """
        state, follower, tasks, call = self._state, self.follower, self._tasks, self._shared.call
        # Reading many rules takes time; a standby that is resumed must announce before that.
        settings = await call(self.answering.session.maps.settings)
        tasks.pause(settings.paused)
        if link is None:
            link = await call(follower.follow)
        self._guard.follow(follower.rules, follower.leased)
        self._mac = link.mac
        state.reachable = link.operational and not settings.paused
        state.hold(follower.leased)
        self._neighbours.follow(
            link.l3_ifindex, follower.gateways, solicit=follower.needs_gateway_macs
        )
        may_be_lost, follower.groups_may_be_lost = follower.groups_may_be_lost, False
        await self._groups.follow(link, follower.targets, may_be_lost=may_be_lost)
        if state.pending.announcement:
            state.pending.announcement = False
            tasks.interrupt()
        tasks.follow_guests(follower.rules, link)
        if self._groups.targets is follower.targets:  # their groups are joined
            self._announced = (follower.unleased_targets, follower.leased_targets)
        own, leased = self._announced
        tasks.follow(link, follower.gateways, own, follower.care, leased)
        if state.pending.leased:
            state.pending.leased = False
            tasks.announce_leased()
        if state.health.renewal.is_due and not await call(follower.is_attached):
            log.warning(
                "%s: another process detached the program; attaching it again", state.spec.interface
            )
            state.pending.attachment = True

    async def _notice_removal(self) -> None:
        """Check periodically that program, pins and files are in place."""
        while True:
            await asyncio.sleep(_CHECK_PERIOD)
            with contextlib.suppress(InterfaceGone):
                if not self.answering.directory.is_damaged() and await self._shared.call(
                    self.follower.is_attached
                ):
                    continue
            self._state.changed.set()

    @contextlib.asynccontextmanager
    async def _heartbeat(self, heartbeats: Heartbeats) -> AsyncIterator[None]:
        """Have heartbeats written during the block, if the specification wants them."""
        session, timeout = self.answering.session, self._state.spec.heartbeat_timeout
        call, health = self._shared.call, self._state.health
        if not timeout:
            with health.guarding(health.following):
                await call(partial(reconcile.write_heartbeat, session, 0.0))
            yield
            return
        await call(partial(heartbeats.begin, session, timeout))
        try:
            yield
        finally:
            await call(partial(heartbeats.end, session.interface))
