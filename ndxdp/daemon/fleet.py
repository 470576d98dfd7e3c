"""Shared addresses: what this host answers for, kept in step with etcd and with its lease.

fleet/segment.py decides. This module carries its decisions out: it writes the keys, and gives the
uplinks their rules and the end of the lease.

The order keeps two hosts from answering for one address. To take it, the key is created, and then
the rule is written. To give it up, the rule is removed from the maps of all interfaces, and then
the key is deleted. A lease that is lost closes the fence of each interface at once; the next lease
opens it only after its maps have the rules of the present state (daemon/uplink_lease.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable
from itertools import islice

from ndxdp.backoff import persist
from ndxdp.boot_clock import boot_ns
from ndxdp.daemon.fleet_keys import FleetKeys
from ndxdp.daemon.fleet_membership import Membership
from ndxdp.daemon.uplink import Uplink
from ndxdp.fleet.decision import Acquisition
from ndxdp.fleet.keys import HOLDERS, MOVES, SHARED, FleetKey, ranges
from ndxdp.fleet.lease_clock import LeaseClock
from ndxdp.fleet.records import encode_holder
from ndxdp.fleet.segment import Segment
from ndxdp.fleet.takeover_rate import TakeoverRate
from ndxdp.printable import printable, shown
from ndxdp.sources.etcd import Watcher
from ndxdp.sources.etcd_client import EtcdClient
from ndxdp.sources.etcd_lease import LeaseKeeper
from ndxdp.sources.etcd_settings import Etcd
from ndxdp.sources.http import NoAnswer
from ndxdp.sources.tls import plain_reason

log = logging.getLogger(__name__)

_RETRY = 1.0  # seconds after a request to etcd that failed
_TIMEOUT = 2.0  # seconds for a member of etcd to answer
_PATIENCE = 0.5  # seconds after which the next member is asked, too
_SILENCE_MAX = 10.0  # seconds after which a member of etcd that hangs is left
_REVOKE_WITHIN = 2.0  # seconds, at the end
_LOGGED_MAX = 10  # names in a line of the log
_QUIET_AFTER = 1.0  # seconds beyond the lease, after etcd turned out to have another history


class FleetTask:
    """This host's part in the shared addresses of its segments, until end().

    Call the methods in the event loop's thread.

    Attributes:
        settings: The table [etcd].
        segments: The segments by name.
        keys: What etcd has of this host.
        watcher: Follows the keys.
        keeper: Keeps the lease.
        membership: This host's membership.
        problem: Why the last request to etcd failed; "" after an answer.
    """

    def __init__(
        self,
        settings: Etcd,
        names: Collection[str],
        clock: LeaseClock,
        uplinks: Callable[[], Iterable[Uplink]],
        on_rules: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        """Begin to follow the keys; the lease is granted once they are known.

        Args:
            settings: The table [etcd].
            names: The segments of the configuration.
            clock: Gets the end of the lease.
            uplinks: Returns the present uplinks.
            on_rules: Called to give the uplinks the segments' rules.
            on_change: Called after a change that the status shows.
        """
        self.settings = settings
        self._rate = TakeoverRate()
        self.segments = {
            name: Segment(name, settings.host, settings.lease, self._rate) for name in sorted(names)
        }
        self.keys = FleetKeys(settings.root, settings.host)
        self._client = EtcdClient(settings, _TIMEOUT)
        self.membership = Membership(settings, self._client, self.keys)
        self.problem = ""
        self._clock, self._uplinks = clock, uplinks
        self._on_rules, self._on_change = on_rules, on_change
        self._wake = asyncio.Event()
        self._began = boot_ns()
        self._lease = 0  # the lease that the segments know
        self._was_lost = False
        self._doubted: tuple[int, int] | None = None  # a renewal that does not count yet
        self._keeps, self._adopts = False, True
        self._adopting = False
        self.keeper = self._make_keeper()
        self.watcher = Watcher(
            settings,
            self._watcher_changed,
            ranges=[f"{settings.root}{each}" for each in ranges(sorted(names))],
            on_new_history=self._new_history,
            subject="keys of shared addresses",
            meanwhile="shared addresses are kept while the lease lasts",
            silence=min(settings.lease, _SILENCE_MAX),
        )
        self._tasks = [
            asyncio.ensure_future(persist(log, "etcd: shared addresses", work))
            for work in (self._watch, self._work)
        ]

    @property
    def is_known(self) -> bool:
        """True once all keys were read, and it is known whether a former lease is alive."""
        return not self._adopting and all(
            segment.view.complete for segment in self.segments.values()
        )

    def presence_changed(self) -> None:
        """Join or leave segments: an interface has begun or ceased to answer, or its carrier."""
        self._wake.set()

    async def end(self) -> None:
        """Answer for no shared address any more, and let others take them at once."""
        self._stop_tasks()
        # The kernel stops answering by leased rules here, so that the keys may go.
        if self._close_fences():
            await self.keeper.revoke(_REVOKE_WITHIN)
        else:
            self.keeper.stop()
        self._client.close()

    def abandon(self) -> None:
        """Do nothing any more, and leave the keys to the lease: another task adopts it."""
        self._stop_tasks()
        self.keeper.stop()
        self._client.close()

    def _stop_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()

    # ---- the keys

    async def _watch(self) -> None:
        async with contextlib.aclosing(self.watcher.watch(lambda: self.keys.count)) as batches:
            async for batch in batches:
                is_complete = await self.keys.read(
                    batch, self.segments, lambda: self.watcher.revision
                )
                if is_complete:
                    self._keys_changed()

    def _keys_changed(self) -> None:
        if not self._keeps:
            self._keeps = True
            former = self.membership.former_lease() if self._adopts else 0
            self._adopting = bool(former)
            self.keeper.start(former)
        self._on_rules()
        self._wake.set()
        self._on_change()

    def _new_history(self) -> None:
        """Start over: etcd was restored, so that its leases and holders are those of the past."""
        log.warning("etcd has another history: shared addresses are given up, and taken later")
        quiet_until = time.monotonic() + self.settings.lease + _QUIET_AFTER
        for segment in self.segments.values():
            segment.new_history(quiet_until)
        self._lease_lost()
        self.keeper.stop()
        self.keeper = self._make_keeper()
        # The next lease is granted once all keys were read.
        self._keeps = self._adopts = self._adopting = False

    # ---- the lease

    def _make_keeper(self) -> LeaseKeeper:
        return LeaseKeeper(self.settings, self._lease_renewed, self._lease_lost)

    def _lease_renewed(self, lease: int, until: int) -> None:
        if not self.watcher.connected:
            self.watcher.hurry()
            if self._was_lost:
                # The known keys may be those of a history that etcd does not have any more: it may
                # have been restored, with this lease, while it was away.
                self._doubted = lease, until
                return
        self._doubted = None
        self._was_lost = self._adopting = False
        if lease != self._lease:
            self._lease = lease
            for segment in self.segments.values():
                segment.set_lease(lease)
            self._on_rules()
            self._wake.set()
            self._on_change()
            if self._clock.lease not in (0, lease):
                self._close_fences()  # the maps may have rules of the former lease
        self._clock.lease, self._clock.until = lease, until
        for uplink in self._uplinks():
            uplink.lease.renewed()

    def _watcher_changed(self) -> None:
        if self.watcher.connected and self._doubted is not None and self.keeper.until:
            self._lease_renewed(*self._doubted)
        self._on_change()

    def _lease_lost(self) -> None:
        self._lease, self._was_lost, self._doubted = 0, True, None
        for segment in self.segments.values():
            segment.lease_lost()
            segment.set_joined(False)
        self._on_rules()
        self._close_fences()
        self._wake.set()
        self._on_change()

    def _close_fences(self) -> bool:
        """Let no leased rule answer any more; return True if that is certain for all uplinks."""
        self._clock.until = 0
        closed = [uplink.lease.forbid() for uplink in self._uplinks()]
        return all(closed)

    # ---- taking and giving up

    async def _work(self) -> None:
        """Carry out what the segments decide, until cancelled."""
        while True:
            again: float | None = None
            try:
                again = await self._round()
                self.problem = ""
            except NoAnswer as reason:
                problem = printable(plain_reason(reason))
                level = logging.DEBUG if self.problem else logging.WARNING
                log.log(level, "etcd: a change of shared addresses failed: %s", problem)
                self.problem = problem
                again = time.monotonic() + _RETRY
            left = None if again is None else max(0.0, again - time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()

    async def _round(self) -> float | None:
        """Do one round; return when the next one is due, None for after a change."""
        self._wake.clear()
        lease = self._lease
        if lease and self.is_known:
            await self._join_and_leave(lease)
        now = time.monotonic()
        decisions = {name: each.decide(now) for name, each in self.segments.items()}
        self._on_rules()
        releases = {name: each.release for name, each in decisions.items() if each.release}
        if releases:
            await self._release(releases, lease)
        acquisitions = {name: each.acquire for name, each in decisions.items() if each.acquire}
        if acquisitions:
            await self._acquire(acquisitions, lease)
        if releases or acquisitions:
            self._on_change()
            self._wake.set()
        return min((each.again for each in decisions.values() if each.again), default=None)

    async def _join_and_leave(self, lease: int) -> None:
        present, undecided = set[str](), set[str]()
        for uplink in self._uplinks():
            if uplink.lease.may_join:
                present |= set(uplink.spec.segments)
            elif uplink.lease.is_undecided:
                undecided |= set(uplink.spec.segments)
        for name, segment in self.segments.items():
            is_joined = self.membership.is_joined(name, lease)
            if name in present and not is_joined:
                is_joined = await self.membership.join(name, lease)
                self._on_change()
            elif name not in present | undecided and is_joined:
                segment.set_joined(False)
                await self.membership.leave(name, lease)
                is_joined = False
                self._on_change()
            if lease == self._lease:
                segment.set_joined(is_joined)

    async def _release(self, names: dict[str, list[str]], lease: int) -> None:
        """Give addresses up, whose rules the uplinks have without them already."""
        await asyncio.gather(
            *(
                self._silence(uplink)
                for uplink in self._uplinks()
                if not names.keys().isdisjoint(uplink.spec.segments)
            )
        )
        keys = {
            self._key(HOLDERS, segment, name): (segment, name)
            for segment, some in names.items()
            for name in some
        }
        try:
            await self._client.call(
                lambda etcd: etcd.release(list(keys), lease), patience=_PATIENCE
            )
        except NoAnswer:
            for segment, name in keys.values():
                self.segments[segment].refused(name, time.monotonic())
            raise
        for segment, name in keys.values():
            self.segments[segment].released(name)
        _log_names("given up", keys.values())

    async def _silence(self, uplink: Uplink) -> None:
        """Wait until an interface's maps have the present rules, or no leased rule answers."""
        lease = uplink.lease
        if await lease.rules_written() or lease.forbid():
            return
        # A program of an earlier daemon may answer, whose maps this one has not opened.
        former = self._began + max(self.settings.lease, self.keeper.ttl) * 10**9
        await asyncio.sleep(max(0, min(lease.written, former) - boot_ns()) / 1e9)

    async def _acquire(self, acquisitions: dict[str, list[Acquisition]], lease: int) -> None:
        """Acquire addresses, and give the uplinks their rules."""
        since = time.time()
        wanted = {
            self._key(HOLDERS, segment, each.name): (segment, each)
            for segment, some in acquisitions.items()
            for each in some
        }
        values, moves, unchanged = {}, {}, {}
        for key, (segment, each) in wanted.items():
            values[key] = encode_holder(each.holder._replace(since=since))
            unchanged[key] = (self._key(SHARED, segment, each.name), each.changed)
            if each.ends_move:
                moves[key] = self._key(MOVES, segment, each.name)
        found: dict[str, int] = {}
        try:
            found = await self._client.call(
                lambda etcd: etcd.acquire(values, lease, moves, unchanged), patience=_PATIENCE
            )
        finally:
            now = time.monotonic()
            for key, (segment, each) in wanted.items():
                if key in found:
                    self.segments[segment].acquired(each, since, lease, found[key])
                else:
                    self.segments[segment].refused(each.name, now)
        self._on_rules()
        _log_names("taken", [(wanted[key][0], wanted[key][1].name) for key in found])

    def _key(self, kind: str, segment: str, name: str) -> str:
        return f"{self.settings.root}{FleetKey(kind, segment, name)}"


def _log_names(verb: str, names: Collection[tuple[str, str]]) -> None:
    """Log addresses that were taken or given up."""
    if names:
        some = [f"{segment}/{shown(name)}" for segment, name in islice(names, _LOGGED_MAX)]
        more = f" and {len(names) - len(some)} more" if len(names) > len(some) else ""
        log.info("shared addresses %s: %s%s", verb, ", ".join(some), more)
