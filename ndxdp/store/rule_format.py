"""The format of the file that has the rules of an interface in userspace mode.

    header | rules by class | addresses | prefixes | dev_sets | record | record | …

Everything before the first record is the snapshot; rule_file.py says how the file is used.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ndxdp.errors import Damaged
from ndxdp.kernel import abi
from ndxdp.kernel.abi import not_ours

TABLES = ("addresses", "prefixes", "dev_sets")
"""The tables, in the order of the file. Each is a map in the kernel's modes."""

OF_RULES = TABLES[:2]
"""The tables whose values are rules."""

Changes = Mapping[str, Mapping[bytes, bytes | None]]
"""By table, the entries to write; a key without a value is removed."""

_SPECS = [abi.FILES[name] for name in TABLES]
SIZES = [spec.key_size + spec.value_size for spec in _SPECS]
_READ = 16384  # entries of a snapshot that are in memory at once, unless the caller keeps them
_PIECE = 64  # of them, that are merged with changes at once

_MAGIC = b"ndxdp\0r\1"
_HEADER = struct.Struct("=8s QQQ I3I3I I")
"""Magic number, number of the file, number and length of the former file with the same contents,
number of classes, by table its capacity and its entries, checksum of the header."""

_RECORD = struct.Struct("=II 3I I")
"""Checksum of the rest, length of what follows, entries of each table after the change, number of
classes whose number of rules changes."""

CLASS = struct.Struct("=Ii")  # the slot of a rule class, the number of its rules or the change
_PART = struct.Struct("=HHI")  # a table, 1 if its keys are removed, the number of keys
_U16, _U32 = struct.Struct("=H"), struct.Struct("=I")


class Snapshot:
    """The open file. Its header and its snapshot never change.

    Attributes:
        fd: The descriptor, closed with the last reference to this object.
        number: A random number that no other file has.
        former: The number and the length of the former file whose contents the snapshot has.
        limits: By table, how many entries it can have.
        counts: By table, how many entries the snapshot has.
        end: Where the log begins.
    """

    def __init__(self, path: Path) -> None:
        """Open a file; raise OSError, or Damaged if it is no such file."""
        self.fd = os.open(path, os.O_RDONLY)
        header = os.pread(self.fd, _HEADER.size, 0)
        if len(header) < _HEADER.size or _U32.unpack(header[-4:])[0] != zlib.crc32(header[:-4]):
            raise Damaged(*not_ours(path))
        magic, self.number, number, end, self._classes, *more, _ = _HEADER.unpack(header)
        self.former = number, end
        self.limits: list[int] = more[: len(TABLES)]
        self.counts: list[int] = more[len(TABLES) :]
        self._path = path
        lengths = (
            self._classes * CLASS.size,
            *(n * size for n, size in zip(self.counts, SIZES, strict=True)),
        )
        *self._starts, self.end = itertools.accumulate(lengths, initial=_HEADER.size)
        if magic != _MAGIC or os.fstat(self.fd).st_size < self.end:
            raise Damaged(*not_ours(path))

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.fd)

    def classes(self) -> bytes:
        """Return the number of rules of each class, as CLASS."""
        return self._read(self._starts[0], self._classes * CLASS.size)

    def pieces(self, table: int) -> Iterator[bytes]:
        """Yield the entries of a table, in order, many at a time."""
        size = SIZES[table]
        at, left = self._starts[1 + table], self.counts[table]
        while left:
            number = min(left, _READ)
            yield self._read(at, number * size)
            at, left = at + number * size, left - number

    def find(self, table: int, key: bytes) -> bytes | None:
        """Return the value of a key; None if there is no entry."""
        start, size = self._starts[1 + table], SIZES[table]
        low, high = 0, self.counts[table]
        while low < high:
            middle = (low + high) // 2
            entry = self._read(start + middle * size, size)
            found = entry[: len(key)]
            if found == key:
                return entry[len(key) :]
            if found < key:
                low = middle + 1
            else:
                high = middle
        return None

    def _read(self, start: int, length: int) -> bytes:
        data = os.pread(self.fd, length, start)
        if len(data) != length:
            raise Damaged(*not_ours(self._path))
        return data


class Record(NamedTuple):
    """A change in the log.

    Attributes:
        counts: By table, the number of entries after the change.
        moved: The changes of the number of rules of classes, as CLASS.
        changes: What is written and removed.
        length: The bytes of the record, once it was read.
    """

    counts: Sequence[int]
    moved: bytes
    changes: Changes
    length: int = 0

    def encoded(self) -> bytes:
        """Return the bytes of the record."""
        parts = [self.moved]
        for name, some in self.changes.items():
            table = TABLES.index(name)
            written = [key + value for key, value in some.items() if value is not None]
            removed = [key for key, value in some.items() if value is None]
            for keys, is_removal in ((written, 0), (removed, 1)):
                if keys:
                    parts += _PART.pack(table, is_removal, len(keys)), *keys
        body = b"".join(parts)
        head = _RECORD.pack(0, len(body), *self.counts, len(self.moved) // CLASS.size)[4:]
        return _U32.pack(zlib.crc32(body, zlib.crc32(head))) + head + body


def records(data: bytes) -> Iterator[Record]:
    """Yield the complete records in the bytes of a log."""
    at, bytes_ = 0, memoryview(data)
    while at + _RECORD.size <= len(data):
        checksum, length, *counts, classes = _RECORD.unpack_from(data, at)
        body, until = at + _RECORD.size, at + _RECORD.size + length
        if until > len(data) or zlib.crc32(bytes_[at + 4 : until]) != checksum:
            return
        place = body + classes * CLASS.size
        moved = data[body:place]
        changes: dict[str, dict[bytes, bytes | None]] = {}
        while place < until:
            table, is_removal, number = _PART.unpack_from(data, place)
            spec, place = _SPECS[table], place + _PART.size
            part = changes.setdefault(TABLES[table], {})
            if is_removal:
                end = place + number * spec.key_size
                part.update(
                    (key, None)
                    for (key,) in struct.iter_unpack(f"{spec.key_size}s", bytes_[place:end])
                )
            else:
                end = place + number * (spec.key_size + spec.value_size)
                part.update(
                    struct.iter_unpack(f"{spec.key_size}s{spec.value_size}s", bytes_[place:end])
                )
            place = end
        yield Record(counts, moved, changes, until - at)
        at = until


def merged(
    pieces: Iterable[bytes], table: int, changes: Mapping[bytes, bytes | None]
) -> Iterator[bytes]:
    """Yield the entries of a table after some changes, in order, many at a time."""
    key_size, keys, done = _SPECS[table].key_size, sorted(changes), 0
    for piece in pieces:
        until = done
        if done < len(keys):
            until = bisect_right(keys, piece[-SIZES[table] :][:key_size], done)
        yield b"".join(_changed(piece, table, changes, keys[done:until])) if until > done else piece
        done = until
    for start in range(done, len(keys), _PIECE):
        some = keys[start : start + _PIECE]
        yield b"".join(key + value for key in some if (value := changes[key]) is not None)


def _changed(
    entries: bytes, table: int, changes: Mapping[bytes, bytes | None], keys: Sequence[bytes]
) -> Iterator[bytes]:
    """Yield some entries after the changes of these keys, none of which is after the last entry."""
    size, key_size = SIZES[table], _SPECS[table].key_size
    done, copied = 0, 0
    for start in range(0, len(entries), _PIECE * size):
        piece = entries[start : start + _PIECE * size]
        until = bisect_right(keys, piece[-size:][:key_size], done)
        if until == done:
            continue
        yield entries[copied:start]
        kept = [e for (e,) in struct.iter_unpack(f"{size}s", piece) if e[:key_size] not in changes]
        kept += (key + value for key in keys[done:until] if (value := changes[key]) is not None)
        yield b"".join(sorted(kept))
        done, copied = until, start + len(piece)
    yield entries[copied:]


def slot_of(rule: bytes) -> int:
    """Return the slot of a rule's class; the rule is an abi.RULE, which begins with it."""
    slot: int = _U16.unpack_from(rule)[0]
    return slot


def _slots_of(entries: Sequence[bytes]) -> Counter[int]:
    """Return the number of rules by the slot of their class."""
    numbers = Counter[int]()
    for name in OF_RULES:
        table = TABLES.index(name)
        first, step = _SPECS[table].key_size // _U16.size, SIZES[table] // _U16.size
        numbers.update(memoryview(entries[table]).cast("H")[first::step].tolist())
    return numbers


def write_file(
    path: Path,
    limits: Sequence[int],
    entries: Sequence[bytes],
    by_slot: Mapping[int, int] | None = None,
    former: tuple[int, int] = (0, 0),
) -> None:
    """Write a file without a log, and rename it to its name; on an error, the former one stays.

    Args:
        path: The file.
        limits: By table, how many entries it can have.
        entries: By table, its entries in order.
        by_slot: The number of rules by the slot of their class, if it is known.
        former: As in the header.
    """
    by_slot = _slots_of(entries) if by_slot is None else by_slot
    counts = [len(some) // size for some, size in zip(entries, SIZES, strict=True)]
    number = int.from_bytes(os.urandom(8), "big")
    header = _HEADER.pack(_MAGIC, number, *former, len(by_slot), *limits, *counts, 0)[:-4]
    classes = b"".join(CLASS.pack(slot, n) for slot, n in by_slot.items())
    fresh = path.with_name(f"{path.name}:new")
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
        try:
            with os.fdopen(fd, "wb") as file:
                for part in (header, _U32.pack(zlib.crc32(header)), classes, *entries):
                    file.write(part)
        except OSError as error:
            error.filename = str(path)
            raise
        fresh.rename(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
