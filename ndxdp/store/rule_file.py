"""The rules of one interface in userspace mode: one file with a snapshot, followed by a log.

rule_format.py has the format. The snapshot has all entries of three tables. The entries of a table
are in the order of their keys, so that a key is found by bisection. Each change appends one record
to the log: the entries that are written, and the keys that are removed. So the cost of a change
does not depend on how many rules there are. A change of several rules is in the file as a whole or
not at all: readers ignore a record that is incomplete or has a wrong checksum. Its writer was
killed, and the next writer removes it.

Before the log exceeds LOG_MAX, the writer writes a new file whose snapshot has the changes, and
renames it over the file. The new header says that the contents are those of the former file, so
that a reader who has read that one need not read them again. A change of many rules is written
into a new snapshot at once.

Writers have the tree's lock. Readers lock nothing and wait for nobody.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ndxdp.errors import Damaged
from ndxdp.kernel.abi import not_ours
from ndxdp.store.rule_format import (
    CLASS,
    OF_RULES,
    SIZES,
    TABLES,
    Changes,
    Record,
    Snapshot,
    merged,
    records,
    slot_of,
    write_file,
)

log = logging.getLogger(__name__)

FILE_NAME = "rules"
"""The name of the file in an interface's directory."""

LOG_MAX = 1 << 16
"""Bytes of a log: some 1 000 changes of one rule. A command that begins reads the whole log."""

FEW = 2048
"""Entries of a change that are looked up one by one, and whose record is shorter than LOG_MAX."""

PENDING_MAX = 1 << 16
"""Changed keys that are noted for a reader, who otherwise reads all rules again."""


class View(NamedTuple):
    """The contents of the file at one moment; they stay readable when the file is replaced.

    Attributes:
        snapshot: The open file.
        end: Where the log ended.
        changed: By table, what the log says.
        counts: By table, the number of entries.
        moved: The changes of the number of rules of classes, as CLASS.
    """

    snapshot: Snapshot
    end: int
    changed: tuple[dict[bytes, bytes | None], ...]
    counts: Sequence[int]
    moved: bytes

    @classmethod
    def of(cls, snapshot: Snapshot) -> View:
        """Return the contents of a file without its log."""
        return cls(snapshot, snapshot.end, ({}, {}, {}), snapshot.counts, b"")

    def after(self, appended: Sequence[Record]) -> View:
        """Return the contents after records that were appended to the log."""
        if not appended:
            return self
        changed = tuple(dict(some) for some in self.changed)
        for record in appended:
            for name, some in record.changes.items():
                changed[TABLES.index(name)].update(some)
        end = self.end + sum(record.length for record in appended)
        moved = self.moved + b"".join(record.moved for record in appended)
        return View(self.snapshot, end, changed, appended[-1].counts, moved)

    def lookup(self, table: int, key: bytes) -> bytes | None:
        """Return the value of a key; None if there is no entry."""
        changed = self.changed[table]
        return changed[key] if key in changed else self.snapshot.find(table, key)

    def entries(self, table: int) -> bytes:
        """Return all entries of a table, in the order of their keys."""
        return b"".join(self.pieces(table))

    def pieces(self, table: int) -> Iterator[bytes]:
        """Yield the entries of a table, in the order of their keys, many at a time."""
        return merged(self.snapshot.pieces(table), table, self.changed[table])

    def by_slot(self) -> dict[int, int]:
        """Return the number of rules by the slot of their class, without reading the rules."""
        numbers = Counter(dict(CLASS.iter_unpack(self.snapshot.classes())))
        for slot, more in CLASS.iter_unpack(self.moved):
            numbers[slot] += more
        return {slot: number for slot, number in numbers.items() if number > 0}


class Follower:
    """The changes of a file since a reader has taken them last."""

    def __init__(self, file: RuleFile) -> None:
        """Call RuleFile.follow() instead. Everything has changed at first."""
        self._file = file
        self._changed: dict[str, dict[bytes, bytes | None]] | None = None

    def take(self) -> dict[str, dict[bytes, bytes | None]] | None:
        """Return the changes since the last call by table, and forget them; {} if there are none.

        Returns:
            None if everything may have changed.

        Raises:
            OSError: The file was removed.
            Damaged: The file is damaged.
        """
        with self._file.lock:
            self._file.view()
            found, self._changed = self._changed, {}
            return found

    def note(self, changes: Changes | None) -> None:
        """Note changes, or None if everything may have changed."""
        if changes is None or self._changed is None:
            self._changed = None
            return
        for table, some in changes.items():
            self._changed.setdefault(table, {}).update(some)
        if sum(map(len, self._changed.values())) > PENDING_MAX:
            self._changed = None


class RuleFile:
    """The open file. Several threads may use it.

    Attributes:
        lock: Guards the state of this object. It is not held while a file is written, as the thread
            that answers takes it for each batch of frames.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            OSError: There is no file, or this process may not read it.
            Damaged: Another program wrote the file.
        """
        self._path = path
        self.lock = threading.RLock()
        self._followers = weakref.WeakSet[Follower]()
        self._view = View.of(Snapshot(path))

    @staticmethod
    def create(path: Path, limits: Mapping[str, int]) -> None:
        """Create a file without entries.

        Args:
            path: The file.
            limits: By table, how many entries it can have.
        """
        write_file(path, [limits[name] for name in TABLES], [b"", b"", b""])

    @staticmethod
    def create_with(path: Path, limits: Mapping[str, int], entries: Mapping[str, bytes]) -> None:
        """Create a file with some entries, which are in any order; see create()."""
        contents = [
            b"".join(sorted(e for (e,) in struct.iter_unpack(f"{size}s", entries[name])))
            for name, size in zip(TABLES, SIZES, strict=True)
        ]
        write_file(path, [limits[name] for name in TABLES], contents)

    # ---- reading

    def view(self) -> View:
        """Return the present contents.

        Raises:
            OSError: The file was removed.
            Damaged: The file is damaged.
        """
        with self.lock:
            while not self._is_current():
                fresh = Snapshot(self._path)
                if fresh.former != (self._view.snapshot.number, self._view.end):
                    self._note(None)
                self._view = View.of(fresh)
            return self._view

    def follow(self) -> Follower:
        """Return an object that notes the changes from now on."""
        follower = Follower(self)
        with self.lock:
            self._followers.add(follower)
        return follower

    def _is_current(self) -> bool:
        """Read what was appended to the log; return False if the file was replaced or removed."""
        view = self._view
        found = os.fstat(view.snapshot.fd)
        if found.st_size < view.end:
            raise Damaged(*not_ours(self._path))
        if found.st_size > view.end:
            data = os.pread(view.snapshot.fd, found.st_size - view.end, view.end)
            self._view = view = view.after(appended := list(records(data)))
            for record in appended:
                self._note(record.changes)
        return found.st_nlink > 0

    def _note(self, changes: Changes | None) -> None:
        for follower in self._followers:
            follower.note(changes)

    # ---- writing; the caller has the tree's lock

    def write(self, changes: Changes) -> None:
        """Write and remove entries: all of them or, on an error, none.

        Raises:
            OSError: E2BIG if a table has no room for the entries, ENOSPC if the file system is
                full; all others as for view().
        """
        view = self.view()
        if sum(map(len, changes.values())) > FEW:
            self._write_snapshot(view, changes)
            return
        record = _record_of(view, changes)
        self._refuse_full(view, record.counts)
        if not record.changes:
            return
        data = record.encoded()
        if view.end - view.snapshot.end + len(data) > LOG_MAX:
            try:
                self._rewrite(view, view.snapshot.limits)
                view = self.view()
            except OSError as error:  # the log becomes longer
                log.debug("cannot shorten the log: %s", error)
        self._append(view, data)
        self.view()

    def resize(self, table: str, limit: int) -> None:
        """Set how many entries a table can have."""
        view = self.view()
        limits = list(view.snapshot.limits)
        limits[TABLES.index(table)] = limit
        if limits != view.snapshot.limits:
            self._rewrite(view, limits)
            self.view()

    def restore(self) -> None:
        """Write the file again after it was removed; its contents are still readable here."""
        with self.lock:
            self._is_current()
            view = self._view
        self._rewrite(view, view.snapshot.limits)
        with self.lock:
            self._view = View.of(Snapshot(self._path))

    def _refuse_full(self, view: View, counts: Sequence[int]) -> None:
        """Raise OSError if a table has more entries than before, and than it can have."""
        for before, count, limit in zip(view.counts, counts, view.snapshot.limits, strict=True):
            if count > max(before, limit):
                raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), str(self._path))

    def _append(self, view: View, data: bytes) -> None:
        """Append a record to the log, in place of an incomplete one."""
        fd = os.open(self._path, os.O_WRONLY)
        try:
            if os.fstat(fd).st_size != view.end:
                os.ftruncate(fd, view.end)
            written = 0
            while written < len(data):
                written += os.pwrite(fd, data[written:], view.end + written)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, view.end)
            error.filename = str(self._path)
            raise
        finally:
            os.close(fd)

    def _rewrite(self, view: View, limits: Sequence[int]) -> None:
        """Replace the file by one that has the same contents in its snapshot."""
        entries = [view.entries(table) for table in range(len(TABLES))]
        former = view.snapshot.number, view.end
        write_file(self._path, limits, entries, view.by_slot(), former)

    def _write_snapshot(self, view: View, changes: Changes) -> None:
        """Replace the file by one whose snapshot has some changes."""
        entries = [
            b"".join(merged(view.pieces(table), table, changes.get(name, {})))
            for table, name in enumerate(TABLES)
        ]
        counts = [len(some) // size for some, size in zip(entries, SIZES, strict=True)]
        self._refuse_full(view, counts)
        write_file(self._path, view.snapshot.limits, entries)
        self.view()


def _record_of(view: View, changes: Changes) -> Record:
    """Return the record that makes some changes, without those that are there already."""
    counts, moved = list(view.counts), Counter[int]()
    needed: dict[str, dict[bytes, bytes | None]] = {}
    for name, some in changes.items():
        table = TABLES.index(name)
        for key, value in some.items():
            before = view.lookup(table, key)
            if before == value:
                continue
            needed.setdefault(name, {})[key] = value
            counts[table] += (value is not None) - (before is not None)
            if name in OF_RULES:
                for rule, number in ((before, -1), (value, 1)):
                    if rule is not None:
                        moved[slot_of(rule)] += number
    pairs = b"".join(CLASS.pack(slot, more) for slot, more in moved.items() if more)
    return Record(counts, pairs, needed)
