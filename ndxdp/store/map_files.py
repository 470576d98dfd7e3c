"""The files of userspace mode in place of BPF maps.

An array is a file of the map's name, which has the map's bytes (kernel/abi.py). The tables of rules
are in one file (rule_file.py). Both have the methods of a BPF map (Map), so that callers read and
write rules, settings and counters in the same way.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, Self

from ndxdp.errors import Damaged
from ndxdp.kernel.abi import MapSpec, not_ours
from ndxdp.store.rule_file import RuleFile, View
from ndxdp.store.rule_format import TABLES

_U32 = struct.Struct("=I")
_U64_MAX = (1 << 64) - 1


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

    def close(self) -> None:
        """Close the map."""


class ArrayFile:
    """An array in a file. It has one value where a BPF map has a value for each CPU.

    The file is not mapped into memory: if another process truncated it, SIGBUS would end this one.

    Attributes:
        spec: Its sizes.
        fd: The descriptor.
        value_size: Bytes of a value.
        max_entries: How many elements the array can have.
    """

    def __init__(
        self, path: Path, spec: MapSpec, max_entries: int = 0, fd: int | None = None
    ) -> None:
        """Open an array.

        Args:
            path: Its file.
            spec: Its sizes.
            max_entries: How many elements the array can have, if it grows.
            fd: A descriptor of the file, which was open before; None to open it.
        """
        self._path, self.spec, self.value_size = path, spec, spec.value_size
        self.max_entries = max_entries or spec.max_entries
        self._grows = self.max_entries > spec.max_entries
        self.fd = self._open() if fd is None else fd

    def _open(self) -> int:
        """Return a descriptor of the file; raise Damaged if it is not of the array's size."""
        try:
            fd = os.open(self._path, os.O_RDWR)
        except PermissionError:  # reading may suffice
            fd = os.open(self._path, os.O_RDONLY)
        present, odd = divmod(os.fstat(fd).st_size, self.value_size)
        if odd or not self.spec.max_entries <= present <= self.max_entries:
            os.close(fd)
            raise Damaged(*not_ours(self._path))
        return fd

    def using(self, fd: int) -> Self:
        """Return the same array with another descriptor of its file, which it takes over."""
        return type(self)(self._path, self.spec, self.max_entries, fd)

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
        data = os.pread(self.fd, self.value_size * self.max_entries, 0)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
        try:
            os.pwrite(fd, data, 0)
            # dup2() switches atomically: the thread that answers counts in this file.
            os.dup2(fd, self.fd, inheritable=False)
        finally:
            os.close(fd)

    def lookup(self, key: bytes) -> bytes | None:
        """Return an element; None if the array has not grown so far.

        Raises:
            Damaged: The file is too short.
        """
        at = _U32.unpack(key)[0] * self.value_size
        value = os.pread(self.fd, self.value_size, at)
        if self._grows and not value:
            return None
        if len(value) != self.value_size:
            raise Damaged(*not_ours(self._path))
        return value

    def update(self, keys: bytes, values: bytes) -> None:
        """Write elements; raise PermissionError if the file is open for reading only."""
        if fcntl.fcntl(self.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self._path))
        size = self.value_size
        if self._grows and keys:
            self._grow(1 + max(slot for (slot,) in _U32.iter_unpack(keys)))
        for n, (slot,) in enumerate(_U32.iter_unpack(keys)):
            os.pwrite(self.fd, values[n * size : (n + 1) * size], slot * size)

    def _grow(self, entries: int) -> None:
        """Extend the file to a power of two of elements, if it has too few."""
        if entries * self.value_size > os.fstat(self.fd).st_size:
            _reserve(self._path, self.fd, (1 << (entries - 1).bit_length()) * self.value_size)

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
        """Raise OSError (EINVAL), as the kernel does: an array always has its elements."""
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(self._path))

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all elements that the file has."""
        size = self.value_size
        data = os.pread(self.fd, size * self.max_entries, 0)
        for slot in range(len(data) // size):
            yield _U32.pack(slot), data[slot * size : (slot + 1) * size]

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all elements that the file has at once: concatenated keys, and values."""
        data = os.pread(self.fd, self.value_size * self.max_entries, 0)
        count = len(data) // self.value_size
        yield struct.pack(f"={count}I", *range(count)), data

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


class TableFile:
    """A hash or a trie in userspace mode: one of the tables in the file of the rules."""

    def __init__(self, file: RuleFile, spec: MapSpec, view: View | None = None) -> None:
        """Take an open file.

        Args:
            file: The file.
            spec: The sizes of the table, and its name.
            view: What is read of the file; None for the contents at the time of each call.
        """
        self._file, self._spec, self._view = file, spec, view
        self._table = TABLES.index(spec.name)
        self.value_size = spec.value_size

    def at(self, view: View) -> TableFile:
        """Return the table as it was at one moment."""
        return TableFile(self._file, self._spec, view)

    @property
    def max_entries(self) -> int:
        """How many entries the table can have."""
        return self._present().snapshot.limits[self._table]

    def lookup(self, key: bytes) -> bytes | None:
        """Return the value of a key; None if there is no entry."""
        return self._present().lookup(self._table, key)

    def update(self, keys: bytes, values: bytes) -> None:
        """Write entries, all or none; raise OSError if the table has no room for them."""
        entries = zip(self._keys(keys), self._values(values), strict=True)
        self._file.write({self._spec.name: dict(entries)})

    def delete(self, keys: bytes) -> None:
        """Remove entries; a missing entry is no error."""
        self._file.write({self._spec.name: dict.fromkeys(self._keys(keys))})

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries, as they were when the iteration began."""
        entry = struct.Struct(f"{self._spec.key_size}s{self.value_size}s")
        pieces = self._present().pieces(self._table)
        return itertools.chain.from_iterable(map(entry.iter_unpack, pieces))

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries, many at a time, as they were when the iteration began."""
        entry = struct.Struct(f"{self._spec.key_size}s{self.value_size}s")
        for piece in self._present().pieces(self._table):
            entries = list(entry.iter_unpack(piece))
            yield b"".join(key for key, _ in entries), b"".join(value for _, value in entries)

    def resize(self, max_entries: int) -> None:
        """Set how many entries the table can have."""
        self._file.resize(self._spec.name, max_entries)

    def close(self) -> None:
        """Do nothing: the file is closed with the last reference to it."""

    def _present(self) -> View:
        return self._view or self._file.view()

    def _keys(self, packed: bytes) -> Iterator[bytes]:
        return (key for (key,) in struct.iter_unpack(f"{self._spec.key_size}s", packed))

    def _values(self, packed: bytes) -> Iterator[bytes]:
        return (value for (value,) in struct.iter_unpack(f"{self.value_size}s", packed))


def _reserve(path: Path, fd: int, size: int) -> None:
    """Give a file so many bytes now, so that counting continues on a full file system."""
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        error.filename = str(path)
        raise
