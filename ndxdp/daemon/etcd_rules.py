"""The rules that etcd has for this host, and which uplink gets which of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable
from functools import partial

from ndxdp.backoff import persist
from ndxdp.daemon.etcd_table import SegmentTable
from ndxdp.daemon.refusals import shown_refused
from ndxdp.daemon.report_timer import ReportTimer
from ndxdp.daemon.segment_rules import Forced, SegmentRules
from ndxdp.daemon.uplink import Uplink
from ndxdp.printable import shown
from ndxdp.rules.rule import ETCD_ORIGIN
from ndxdp.runtime.daemon_status import DaemonStatus, EtcdStatus
from ndxdp.sources.etcd import Watcher
from ndxdp.sources.etcd_batch import Batch
from ndxdp.sources.etcd_settings import Etcd
from ndxdp.sources.etcd_wire import Item

log = logging.getLogger(__name__)

_UNUSED_MAX = 20  # segments that no interface has, and that the status names


class EtcdRules:
    """Watches etcd for the uplinks that have a segment there.

    Call the methods in the event loop's thread.
    """

    def __init__(self, status: DaemonStatus, uplinks: Callable[[], Iterable[Uplink]]) -> None:
        """Watch nothing yet.

        Args:
            status: The daemon's status, which shows the state of the connection.
            uplinks: Returns the present uplinks.
        """
        self._status, self._uplinks = status, uplinks
        self._watcher: Watcher | None = None
        self._watching: asyncio.Task[None] | None = None
        self._segments: frozenset[str] = frozenset()
        self._tables: dict[str, SegmentTable] | None = None  # None before all keys were read
        self._reading: dict[str, SegmentTable] | None = None  # while all keys are read
        self._given = SegmentRules(ETCD_ORIGIN)
        self._report = ReportTimer(status.changed)

    def watch(self, settings: Etcd | None, segments: Collection[str]) -> None:
        """Watch etcd if there are segments; a connection that serves them already is kept.

        Args:
            settings: The table [etcd]; None without one.
            segments: The segments of the configuration. Those of a pattern are here even while no
                interface matches it.
        """
        self._segments = frozenset(segments)
        if settings is None or not self._segments:
            self.end()
        elif self._watcher is None or self._watcher.settings != settings:
            self.end()
            watcher = self._watcher = Watcher(settings, self._report.note)
            self._status.etcd = partial(self._state, watcher)
            self._watching = asyncio.ensure_future(
                persist(log, "etcd", partial(self._watch, watcher))
            )
        self._given.forget()
        for uplink in self._uplinks():
            self.apply_to(uplink)
        self._status.changed()

    def end(self) -> None:
        """Watch nothing any more; the uplinks keep their rules."""
        if self._watching is not None:
            self._watching.cancel()
        self._report.cancel()
        self._watching = self._watcher = self._tables = self._status.etcd = None
        self._reading = None
        self._given.forget()

    def apply_to(self, uplink: Uplink) -> None:
        """Give an uplink the rules of its segments.

        Until all keys were read, the uplink keeps the rules of the segments that it had before.
        """
        self._given.give(uplink, None if self._tables is None else self._rules_of)

    def _rules_of(self, segment: str) -> Forced | None:
        # A key that was deleted leaves its table; a segment without keys has none.
        table = (self._tables or {}).get(segment)
        return None if table is None else (table.rules, table.forced)

    # ---- batches of keys

    async def _watch(self, watcher: Watcher) -> None:
        async with contextlib.aclosing(watcher.watch(self._size)) as batches:
            async for batch in batches:
                await self._take(watcher, batch)

    def _size(self) -> int:
        return sum(map(len, (self._tables or {}).values()))

    async def _take(self, watcher: Watcher, batch: Batch) -> None:
        """Read a batch, and give the uplinks what follows once it is complete."""
        if batch.begins:
            before = self._tables or {}
            self._reading = {
                name: SegmentTable(name, table.refused) for name, table in before.items()
            }
        tables = self._tables if self._reading is None else self._reading
        assert tables is not None
        async for item in batch.each():
            self._put(tables, watcher.settings.directory, item)
        if not batch.ends:
            return
        changed = False
        for table in tables.values():
            changed = table.commit() or changed
        if self._reading is not None:
            self._tables, self._reading = self._reading, None
            changed = True
        if changed:
            for uplink in self._uplinks():
                self.apply_to(uplink)
        self._report.note()

    def _put(self, tables: dict[str, SegmentTable], directory: str, item: Item) -> None:
        segment, _, name = item.name_below(directory).partition("/")
        table = tables.get(segment)
        if table is None:
            table = tables[segment] = SegmentTable(segment)
        if item.value is None:
            table.delete(name)
        else:
            table.put(name, item.value, item.created)

    def _state(self, watcher: Watcher) -> EtcdStatus:
        """Return the state of the connection; another thread may call this."""
        tables, wanted = sorted((self._tables or {}).items()), self._segments
        ours = [(name, table) for name, table in tables if name in wanted]
        unused = [(shown(name), len(table)) for name, table in tables if name not in wanted]
        return EtcdStatus(
            watcher.connected,
            watcher.endpoint,
            watcher.problem,
            watcher.since,
            watcher.revision,
            watcher.confirmed,
            watcher.last_event,
            sum(len(table.rules) for _, table in ours),
            sum(len(table.refused) for _, table in ours),
            shown_refused((name, table.refused) for name, table in ours),
            {name: count for name, count in unused[:_UNUSED_MAX] if count},
        )
