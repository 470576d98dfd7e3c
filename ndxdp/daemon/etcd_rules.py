"""The rules that etcd has for this host, and which uplink gets which of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable
from functools import partial
from itertools import islice

from ndxdp.backoff import persist
from ndxdp.daemon.etcd_table import SegmentTable, union
from ndxdp.daemon.uplink import Uplink
from ndxdp.printable import shown
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import ETCD_ORIGIN, LABEL_MAX, UNCOUNTED, cut
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime.daemon_status import DaemonStatus, EtcdStatus
from ndxdp.sources.etcd import Batch, Watcher
from ndxdp.sources.etcd_settings import Etcd
from ndxdp.sources.etcd_wire import Item

log = logging.getLogger(__name__)

_SHOWN_MAX = 20
"""Refused values, and segments that no interface has, that the status names."""

_YIELD_AFTER = 250
"""Keys that are read at once; then the loop's other tasks get their turn."""

_REPORT_AFTER = 0.5  # seconds from a change to the report that has it


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
        self._unions: dict[tuple[str, ...], tuple[Rules, frozenset[Prefix]]] = {}
        self._reporting: asyncio.TimerHandle | None = None

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
            watcher = self._watcher = Watcher(settings, self._report)
            self._status.etcd = partial(self._state, watcher)
            self._watching = asyncio.ensure_future(
                persist(log, "etcd", partial(self._watch, watcher))
            )
        self._unions.clear()
        for uplink in self._uplinks():
            self.apply_to(uplink)
        self._status.changed()

    def end(self) -> None:
        """Watch nothing any more; the uplinks keep their rules."""
        if self._watching is not None:
            self._watching.cancel()
        if self._reporting is not None:
            self._reporting.cancel()
        self._watching = self._watcher = self._tables = self._status.etcd = self._reporting = None
        self._reading = None
        self._unions.clear()

    def apply_to(self, uplink: Uplink) -> None:
        """Give an uplink the rules of its segments.

        Until all keys were read, the uplink keeps the rules of the segments that it had before.
        """
        segments = uplink.spec.segments
        if not segments:
            uplink.rules.set(ETCD_ORIGIN, Rules())
        elif self._tables is not None:
            if segments not in self._unions:
                # A key that was deleted leaves its table; a segment without keys has none.
                present = (self._tables[each] for each in segments if each in self._tables)
                self._unions[segments] = union((each.rules, each.forced) for each in present)
            uplink.rules.set(ETCD_ORIGIN, *self._unions[segments])
        elif (rules := uplink.rules.get(ETCD_ORIGIN)) is not None:
            labels = {cut(segment, LABEL_MAX) for segment in segments} | {UNCOUNTED}
            ours = rules.where(lambda rule: rule.label in labels)
            uplink.rules.set(ETCD_ORIGIN, ours, uplink.rules.forced(ETCD_ORIGIN))

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
        for number, item in enumerate(batch.items, 1):
            self._put(tables, watcher.settings.directory, item)
            if number % _YIELD_AFTER == 0:
                await asyncio.sleep(0)
        if not batch.ends:
            return
        changed = False
        for table in tables.values():
            changed = table.commit() or changed
        if self._reading is not None:
            self._tables, self._reading = self._reading, None
            changed = True
        if changed:
            self._unions.clear()
            for uplink in self._uplinks():
                self.apply_to(uplink)
        self._report()

    def _put(self, tables: dict[str, SegmentTable], directory: str, item: Item) -> None:
        # A key is bytes, and need not be UTF-8.
        path = item.key.decode(errors="surrogateescape")
        segment, _, name = path.removeprefix(directory).partition("/")
        table = tables.get(segment)
        if table is None:
            table = tables[segment] = SegmentTable(segment)
        if item.value is None:
            table.delete(name)
        else:
            table.put(name, item.value, item.created)

    # ---- the report

    def _report(self) -> None:
        """Have the daemon's report written soon: a burst of changes is one report."""
        if self._reporting is None:
            loop = asyncio.get_running_loop()
            self._reporting = loop.call_later(_REPORT_AFTER, self._report_now)

    def _report_now(self) -> None:
        self._reporting = None
        self._status.changed()

    def _state(self, watcher: Watcher) -> EtcdStatus:
        """Return the state of the connection; another thread may call this."""
        tables, wanted = sorted((self._tables or {}).items()), self._segments
        ours = [(name, table) for name, table in tables if name in wanted]
        refused = [
            {"key": f"{segment}/{shown(name)}", "reason": reason}
            for segment, table in ours
            for name, reason in islice(list(table.refused.items()), _SHOWN_MAX)
        ]
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
            refused[:_SHOWN_MAX],
            {name: count for name, count in unused[:_SHOWN_MAX] if count},
        )
