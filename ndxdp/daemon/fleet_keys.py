"""The keys of shared addresses as they come from etcd, passed on to the segments."""

from __future__ import annotations

from collections.abc import Callable

from ndxdp.config.shared_value import SharedValueReader
from ndxdp.daemon.refusals import log_refused
from ndxdp.errors import UsageError
from ndxdp.fleet.keys import DRAINED, HOLDERS, MEMBERS, MOVES, SHARED, FleetKey, parse_key
from ndxdp.fleet.records import Member, decode_holder, decode_member, decode_move
from ndxdp.fleet.segment import Segment
from ndxdp.fleet.shared_address import SharedAddress
from ndxdp.fleet.view import Holding
from ndxdp.printable import printable, shown
from ndxdp.sources.etcd_batch import Batch
from ndxdp.sources.etcd_wire import Item


class FleetKeys:
    """Reads batches of keys into the views of segments.

    Attributes:
        own: The membership of this host by segment, as etcd has it, and the id of its lease. It may
            be that of an earlier daemon, or of another host with the same name.
        drained: Somebody has drained this host.
        count: The number of all keys, as the stream of changes has them.
    """

    def __init__(self, root: str, host: str) -> None:
        """Know no keys yet.

        Args:
            root: The beginning of the keys of all hosts.
            host: The name of this host.
        """
        self.own: dict[str, tuple[Member, int]] = {}
        self.drained, self.count = False, 0
        self._root, self._host = root, host
        self._readers: dict[str, SharedValueReader] = {}
        self._known: set[tuple[str, str, str]] = set()  # refused values that the log has
        self._is_reading = False

    async def read(
        self, batch: Batch, segments: dict[str, Segment], revision: Callable[[], int]
    ) -> bool:
        """Read a batch; return True if it completes a set of keys.

        Args:
            batch: The batch.
            segments: The segments by name.
            revision: Returns the revision up to which the keys are known after a complete batch.
        """
        if batch.begins:
            self._is_reading = True
            self.own, self.drained, self.count = {}, False, 0
            for segment in segments.values():
                segment.view.begin()
        async for item in batch.each():
            self._take(item, segments)
        if not batch.ends:
            return False
        if self._is_reading:
            self._is_reading = False
            for segment in segments.values():
                segment.view.end(revision())
        self._log(segments)
        return True

    def _take(self, item: Item, segments: dict[str, Segment]) -> None:
        if item.value is None:
            self.count -= 1
        elif self._is_reading or item.created == item.changed:
            self.count += 1
        key = parse_key(item.name_below(self._root))
        if key is None:
            return
        if key.kind == DRAINED:
            if key.name == self._host:
                self.drained = item.value is not None
            for each in segments.values():
                if item.value is None:
                    each.view.delete_drained(key.name)
                else:
                    each.view.put_drained(key.name)
        elif (segment := segments.get(key.segment)) is not None:
            if item.value is None:
                self._delete(key, item, segment)
            else:
                self._put(key, item, item.value, segment)

    def _put(self, key: FleetKey, item: Item, value: bytes, segment: Segment) -> None:
        view = segment.view
        match key.kind:
            case "shared":
                found = self._read_value(key, value)
                view.put_shared(key.name, found, item.created, item.changed)
            case "members":
                member = decode_member(key.name, value)
                if key.name == self._host:
                    self.own[key.segment] = (member, item.lease)
                view.put_member(member)
            case "holders":
                view.put_holder(key.name, Holding(decode_holder(value), item.lease), item.changed)
            case "moves":
                view.put_move(key.name, decode_move(value), item.changed)

    def _delete(self, key: FleetKey, item: Item, segment: Segment) -> None:
        view = segment.view
        if key.kind == SHARED:
            view.delete_shared(key.name, item.changed)
        elif key.kind == MEMBERS:
            if key.name == self._host:
                self.own.pop(key.segment, None)
            view.delete_member(key.name)
        elif key.kind == HOLDERS:
            view.delete_holder(key.name, item.changed)
        elif key.kind == MOVES:
            view.delete_move(key.name)

    def _read_value(self, key: FleetKey, value: bytes) -> SharedAddress | str:
        """Return what the value of a shared address says, or why it is refused."""
        reader = self._readers.get(key.segment)
        if reader is None:
            reader = self._readers[key.segment] = SharedValueReader(key.segment)
        try:
            return reader.read_named(key.name, value)
        except UsageError as error:
            return error.summary

    def _log(self, segments: dict[str, Segment]) -> None:
        """Log each refused value once."""
        refused = {
            (name, key, reason)
            for name, segment in segments.items()
            for key, reason in segment.view.refused.items()
        }
        fresh = sorted(refused - self._known)
        self._known = refused
        log_refused(
            [(f"{SHARED}/{name}/{shown(key)}", printable(reason)) for name, key, reason in fresh]
        )
