"""The files of userspace mode in place of BPF maps.

A file and a BPF map have the same bytes under the same name (kernel/abi.py) and the same methods
(Map), so that callers read and write rules, settings and counters in the same way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Protocol

from ndxdp.errors import Damaged
from ndxdp.kernel.abi import MapSpec, not_ours

_U32 = struct.Struct("=I")
_U64_MAX = (1 << 64) - 1
_HEADER = struct.Struct("=II")  # of a table's file: max_entries, zero
_FEW = 64  # keys that are searched for in a table's file, instead of reading its entries
_ENTRIES = 16384  # entries of a table's file that are objects at the same time


class Map(Protocol):
    """A map of keys to values, in the layouts of abi.py; several of either are concatenated."""

    @property
    def max_entries(self) -> int:
        """How many entries the map can have."""

    @property
    def value_size(self) -> int:
        """Bytes of a value; of a per-CPU map, of the values of all CPUs."""

    def lookup(self, key: bytes) -> bytes | None:
        """Return a value; of a per-CPU map, the values of all CPUs. None if there is no entry."""

    def update(self, keys: bytes, values: bytes) -> None:
        """Write entries. After an OSError, some of the entries may have been written."""

    def delete(self, keys: bytes) -> None:
        """Remove entries; a missing entry is no error."""

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries. Entries added or removed during the iteration may be missed."""

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries, many at a time: the keys, and the values."""

    def leading(self, code: str) -> Iterator[memoryview]:
        """Yield the first integer of each value, many at a time; `code` is struct's H or Q."""

    def close(self) -> None:
        """Close the map."""


class ArrayFile:
    """An array in a file. It has one value where a BPF map has a value for each CPU.

    The file is not mapped into memory: if another process truncated it, SIGBUS would end this one.
    """

    def __init__(self, path: Path, spec: MapSpec, max_entries: int = 0) -> None:
        """Open an array.

        Args:
            path: Its file.
            spec: Its sizes.
            max_entries: How many elements the array can have, if it grows.
        """
        self._path, self.value_size = path, spec.value_size
        self.max_entries = max_entries or spec.max_entries
        try:
            self._fd = os.open(path, os.O_RDWR)
            self._writable = True
        except PermissionError:  # reading may suffice
            self._fd = os.open(path, os.O_RDONLY)
            self._writable = False
        present, odd = divmod(os.fstat(self._fd).st_size, spec.value_size)
        if odd or not spec.max_entries <= present <= self.max_entries:
            os.close(self._fd)
            raise Damaged(*not_ours(path))
        self._grows = self.max_entries > spec.max_entries

    @staticmethod
    def create(path: Path, spec: MapSpec) -> None:
        """Create the file, filled with zeros."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
        try:
            _reserve(path, fd, spec.value_size * spec.max_entries)
        finally:
            os.close(fd)

    def restore(self) -> None:
        """Write the file again after it was removed, from the open descriptor."""
        data = os.pread(self._fd, self.value_size * self.max_entries, 0)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
        try:
            os.pwrite(fd, data, 0)
            # dup2() switches atomically: the thread that answers counts in this file.
            os.dup2(fd, self._fd, inheritable=False)
        finally:
            os.close(fd)

    def lookup(self, key: bytes) -> bytes | None:
        """Return an element; None if the array has not grown so far.

        Raises:
            Damaged: The file is too short.
        """
        at = _U32.unpack(key)[0] * self.value_size
        value = os.pread(self._fd, self.value_size, at)
        if self._grows and not value:
            return None
        if len(value) != self.value_size:
            raise Damaged(*not_ours(self._path))
        return value

    def update(self, keys: bytes, values: bytes) -> None:
        """Write elements; raise PermissionError if the file is open for reading only."""
        if not self._writable:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self._path))
        size = self.value_size
        if self._grows and keys:
            self._grow(1 + max(slot for (slot,) in _U32.iter_unpack(keys)))
        for n, (slot,) in enumerate(_U32.iter_unpack(keys)):
            os.pwrite(self._fd, values[n * size : (n + 1) * size], slot * size)

    def _grow(self, entries: int) -> None:
        """Extend the file to a power of two of elements, if it has too few."""
        if entries * self.value_size > os.fstat(self._fd).st_size:
            _reserve(self._path, self._fd, (1 << (entries - 1).bit_length()) * self.value_size)

    def number(self, slot: int, index: int) -> int:
        """Return the 64-bit integer at position `index` of a value."""
        value = self.lookup(_U32.pack(slot)) or b""
        return int(struct.unpack_from("=Q", value, index * 8)[0])

    def add(self, slot: int, *more: int) -> None:
        """Add to the first 64-bit integers of a value."""
        key = _U32.pack(slot)
        numbers = struct.Struct(f"={len(more)}Q")
        value = self.lookup(key) or b""
        grown = (n + m & _U64_MAX for n, m in zip(numbers.unpack_from(value), more, strict=True))
        self.update(key, numbers.pack(*grown))

    def put(self, slot: int, index: int, number: int) -> None:
        """Write the 64-bit integer at position `index` of a value."""
        value = bytearray(self.lookup(_U32.pack(slot)) or b"")
        struct.pack_into("=Q", value, index * 8, number)
        self.update(_U32.pack(slot), bytes(value))

    def delete(self, keys: bytes) -> None:
        """Raise NotImplementedError: an array always has its elements."""
        raise NotImplementedError("an array always has its elements")

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all elements that the file has."""
        size = self.value_size
        data = os.pread(self._fd, size * self.max_entries, 0)
        for slot in range(len(data) // size):
            yield _U32.pack(slot), data[slot * size : (slot + 1) * size]

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all elements that the file has at once: concatenated keys, and values."""
        data = os.pread(self._fd, self.value_size * self.max_entries, 0)
        count = len(data) // self.value_size
        yield struct.pack(f"={count}I", *range(count)), data

    def leading(self, code: str) -> Iterator[memoryview]:
        """Raise NotImplementedError: only tables have this method."""
        raise NotImplementedError("only tables have this method")

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class TableFile:
    """A hash or a trie in a file: all entries, concatenated. Each change writes a new file."""

    def __init__(self, path: Path, spec: MapSpec, changed: Callable[[], None]) -> None:
        """Open a table.

        Args:
            path: Its file.
            spec: Its sizes.
            changed: Called when a change can be read, unless `quiet` is set.
        """
        self._path, self._spec, self._changed = path, spec, changed
        self.quiet = False
        self.value_size = spec.value_size
        self._entry = spec.key_size + spec.value_size
        self.max_entries: int = _HEADER.unpack(self._read()[: _HEADER.size])[0]

    @property
    def _header(self) -> bytes:
        return _HEADER.pack(self.max_entries, 0)

    @staticmethod
    def create(path: Path, spec: MapSpec) -> None:
        """Create an empty table, or replace one."""
        _replace(path, _HEADER.pack(spec.max_entries, 0))

    def lookup(self, key: bytes) -> bytes | None:
        """Return the value of a key; None if there is no entry."""
        data = self._read()
        place = self._place(data, key)
        return data[place + len(key) : place + self._entry] if place else None

    def update(self, keys: bytes, values: bytes) -> None:
        """Write entries to a new file; raise OSError if the table has no room for them."""
        if not keys:
            return
        new = zip(self._keys(keys), self._values(values), strict=True)
        if len(keys) > _FEW * self._spec.key_size:
            entries = dict(self.items())
            entries.update(new)
            data = b"".join(chain((self._header,), *entries.items()))
        else:
            changed = bytearray(self._read())
            for key, value in new:
                place = self._place(changed, key) or len(changed)
                changed[place : place + self._entry] = key + value
            data = bytes(changed)
        if len(data) > _HEADER.size + self.max_entries * self._entry:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), str(self._path))
        self._write(data)

    def delete(self, keys: bytes) -> None:
        """Remove entries; a missing entry is no error."""
        data = before = self._read() if keys else b""
        if len(keys) > _FEW * self._spec.key_size:
            entries = dict(self.items())
            for key in self._keys(keys):
                entries.pop(key, None)
            data = b"".join(chain((self._header,), *entries.items()))
        else:
            for key in self._keys(keys):
                place = self._place(data, key)
                if place:
                    data = data[:place] + data[place + self._entry :]
        if len(data) < len(before):  # a new file needs room, and the file system may be full
            self._write(data)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries, as they were when the iteration began."""
        entry = struct.Struct(f"{self._spec.key_size}s{self._spec.value_size}s")
        return entry.iter_unpack(memoryview(self._read())[_HEADER.size :])

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries, many at a time, as they were when the iteration began."""
        key, value = self._spec.key_size, self._spec.value_size
        entries, most = memoryview(self._read())[_HEADER.size :], (key + value) * _ENTRIES
        for start in range(0, len(entries), most):
            piece = list(struct.iter_unpack(f"{key}s{value}s", entries[start : start + most]))
            yield b"".join(key for key, _ in piece), b"".join(value for _, value in piece)

    def leading(self, code: str) -> Iterator[memoryview]:
        """Yield the first integer of each value, all at once."""
        size = struct.calcsize(code)
        key, value = self._spec.key_size // size, self._spec.value_size // size
        entries = memoryview(self._read())[_HEADER.size :]
        yield entries.cast(code)[key :: key + value]  # type: ignore[call-overload]

    def resize(self, max_entries: int) -> None:
        """Set how many entries the table can have."""
        self.max_entries = max_entries
        self._write(self._header + self._read()[_HEADER.size :])

    def close(self) -> None:
        """Do nothing: a table's file is not kept open."""

    def _place(self, data: bytes | bytearray, key: bytes) -> int:
        """Return where the entry of a key begins in the file's bytes; 0 if there is none."""
        place = data.find(key, _HEADER.size)
        while place >= 0 and (place - _HEADER.size) % self._entry:
            place = data.find(key, place + 1)
        return max(place, 0)

    def _keys(self, packed: bytes) -> Iterator[bytes]:
        return (key for (key,) in struct.iter_unpack(f"{self._spec.key_size}s", packed))

    def _values(self, packed: bytes) -> Iterator[bytes]:
        return (value for (value,) in struct.iter_unpack(f"{self._spec.value_size}s", packed))

    def _read(self) -> bytes:
        data = self._path.read_bytes()
        if len(data) < _HEADER.size or (len(data) - _HEADER.size) % self._entry:
            raise Damaged(*not_ours(self._path))
        return data

    def _write(self, data: bytes) -> None:
        _replace(self._path, data)
        if not self.quiet:
            self._changed()


def _reserve(path: Path, fd: int, size: int) -> None:
    """Give a file so many bytes now, so that counting continues on a full file system."""
    with _naming(path):
        os.posix_fallocate(fd, 0, size)


def _replace(path: Path, data: bytes) -> None:
    """Replace a file at once; if there is no room for the new file, the old one stays."""
    fresh = path.with_name(f"{path.name}:new")
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
        with _naming(path), os.fdopen(fd, "wb") as file:
            file.write(data)
        fresh.rename(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError of the block, as open(2) does."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
