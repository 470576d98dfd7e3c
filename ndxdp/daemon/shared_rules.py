"""Shared addresses: which uplink gets which of their rules, and what status and reports show."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ndxdp.boot_clock import boot_ns
from ndxdp.daemon.fleet_reporter import FleetReporter
from ndxdp.daemon.refusals import shown_refused
from ndxdp.daemon.report_timer import ReportTimer
from ndxdp.daemon.segment_rules import Forced, SegmentRules
from ndxdp.daemon.uplink import Uplink
from ndxdp.fleet.lease_clock import LeaseClock
from ndxdp.netlink.netns import netns
from ndxdp.printable import shown
from ndxdp.rules.address import address_text, mac_text
from ndxdp.rules.rule import SHARED_ORIGIN
from ndxdp.runtime.daemon_status import DaemonStatus, FleetStatus
from ndxdp.runtime.fleet_report import SharedAddressEntry
from ndxdp.sources.etcd_settings import Etcd

if TYPE_CHECKING:
    from ndxdp.daemon.fleet import FleetTask

_RIVALS_MAX = 20  # rivals that the status names


class SharedRules:
    """Gives the uplinks the rules of the shared addresses of their segments.

    Call the methods in the event loop's thread.
    """

    def __init__(
        self,
        status: DaemonStatus,
        directory: Path,
        clock: LeaseClock,
        uplinks: Callable[[], Iterable[Uplink]],
    ) -> None:
        """Follow nothing yet.

        Args:
            status: The daemon's status, which shows this host's part.
            directory: The run directory, for reports.
            clock: Gets the end of the lease.
            uplinks: Returns the present uplinks.
        """
        self._status, self._directory, self._clock = status, directory, clock
        self._uplinks = uplinks
        self._task: FleetTask | None = None
        self._reporter: FleetReporter | None = None
        self._report = ReportTimer(self._report_now)
        self._given = SegmentRules(SHARED_ORIGIN)

    async def watch(self, settings: Etcd | None, segments: Collection[str]) -> None:
        """Follow shared addresses if there are segments.

        A reload with the same settings keeps everything. With other segments or endpoints, the
        lease is adopted, so that this host keeps its addresses. With another host, prefix or lease,
        they are given up.

        Args:
            settings: The table [etcd]; None without one.
            segments: The segments of the configuration. Those of a pattern are here even while no
                interface matches it.
        """
        task = self._task
        if settings is None or not segments:
            await self.end()
        elif task is None or (task.settings, set(task.segments)) != (settings, set(segments)):
            if task is not None and _lease_of(task.settings) == _lease_of(settings):
                task.abandon()
            elif task is not None:
                await self.end()
            from ndxdp.daemon.fleet import FleetTask  # most daemons need no memory for it

            self._reporter = self._reporter or FleetReporter(self._directory, netns())
            self._task = FleetTask(
                settings,
                segments,
                self._clock,
                self._uplinks,
                self._apply,
                self._report.note,
            )
            self._status.fleet = partial(self._state, self._task)
        self._apply()
        self._status.changed()

    async def end(self) -> None:
        """Give up all shared addresses, so that other hosts take them at once."""
        task, self._task = self._task, None
        self._status.fleet = None
        self._report.cancel()
        if task is not None:
            await task.end()
        if self._reporter is not None:
            self._reporter.close()
            self._reporter = None
        self._given.forget()

    def presence_changed(self) -> None:
        """Join or leave segments: an interface has begun or ceased to answer, or its carrier."""
        if self._task is not None:
            self._task.presence_changed()

    def apply_to(self, uplink: Uplink) -> None:
        """Give an uplink the rules of its segments.

        Until all keys were read, the uplink keeps the rules of the segments that it had before.
        """
        task = self._task
        is_known = task is not None and task.is_known
        self._given.give(uplink, self._rules_of if is_known else None)

    def _rules_of(self, segment: str) -> Forced | None:
        found = self._task.segments.get(segment) if self._task else None
        return None if found is None else found.rules()

    def _apply(self) -> None:
        for uplink in self._uplinks():
            self.apply_to(uplink)

    # ---- status and reports

    def _report_now(self) -> None:
        self._status.changed()
        if self._task is not None and self._reporter is not None:
            self._reporter.note(self._task.settings.host, partial(_entries, self._task))

    def _state(self, task: FleetTask) -> FleetStatus:
        """Return this host's part; another thread may call this."""
        keeper, watcher = task.keeper, task.watcher
        segments = list(task.segments.items())
        problems = dict(task.membership.problems)
        expires = time.time() + (keeper.until - boot_ns()) / 1e9 if keeper.until else None
        problem = task.problem
        if not keeper.until:
            problem = watcher.problem or keeper.problem or "etcd has not granted a lease yet"
        rivals = [each for uplink in self._uplinks() for each in uplink.lease.rivals_seen]
        answering = {
            segment
            for uplink in self._uplinks()
            if uplink.lease.may_join
            for segment in uplink.spec.segments
        }
        return FleetStatus(
            watcher.connected,
            problem,
            expires,
            task.keys.drained,
            [
                segment.status(problems.get(name, ""))._replace(answering=name in answering)
                for name, segment in segments
            ],
            sum(len(segment.view.refused) for _, segment in segments),
            shown_refused((name, segment.view.refused) for name, segment in segments),
            sum(uplink.lease.rivals for uplink in self._uplinks()),
            keeper.lag,
            keeper.ttl,
            [
                {"address": address_text(each.address), "mac": mac_text(each.mac)}
                for each in rivals[:_RIVALS_MAX]
            ],
        )


def _lease_of(settings: Etcd) -> tuple[str, str, int]:
    """Return what a lease depends on."""
    return settings.host, settings.root, settings.lease


def _entries(task: FleetTask) -> list[SharedAddressEntry]:
    """Return all shared addresses of this host's segments, for the report."""
    return [
        SharedAddressEntry(
            name,
            shown(each.name),
            each.prefix,
            list(each.hosts),
            each.failback,
            each.holder,
            each.since,
            each.problem,
        )
        for name, segment in task.segments.items()
        for each in segment.addresses()
    ]
