"""A table of exact addresses: a hash table in a BPF array, which is mapped into memory here.

bpf/ndp_abi.h describes it (struct ndp_address_table). A table keeps its size, and address_map.py
replaces one that is full. Here a rule is a number, as a bucket has it.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import struct
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Self

from ndxdp.kernel import abi, bpf_maps
from ndxdp.kernel.bpf_maps import KernelMap
from ndxdp.store.address_buckets import (
    BUCKET_WORDS,
    RULE_WORD,
    SIZE,
    TAIL,
    TAIL_AT,
    Header,
    Window,
    remove,
    slot_of,
    write,
)
from ndxdp.store.records import damaged

_HEADER_KEY = bytes(4)
_U32 = struct.Struct("=I")
_SEED = struct.Struct("=5Q")
_ADDRESS = struct.Struct("16s")
_BUCKET = struct.Struct("=16s16s16s3I4x")  # a bucket without `passed`
_FEW = 64  # addresses for each of which its own buckets are mapped, in place of the table
_SOME = 8 * SIZE  # bytes of buckets that are compared with zeros at a time
_NOTHING = bytes(_SOME)
_READ = 2048  # elements that are read at a time
_PIECE = 16384  # addresses that are written at a time
_PAGE = mmap.PAGESIZE // SIZE  # elements of a page, of which the kernel gives whole ones


class _Elements(KernelMap):
    """The elements of the table, read by system calls."""

    batch = _READ


class AddressTable:
    """An open table. One process writes at a time; others may read meanwhile.

    The descriptor is closed with the object, so that a thread which reads the table may go on after
    another one has replaced it.

    Attributes:
        fd: The descriptor.
        id: The kernel's number of the array.
    """

    def __init__(self, fd: int) -> None:
        """Take over a descriptor of the array."""
        self.fd = fd
        self.id = bpf_maps.id_of(fd)

    def __del__(self) -> None:
        """Close the descriptor."""
        if hasattr(self, "fd"):
            with contextlib.suppress(OSError):
                os.close(self.fd)

    @classmethod
    def create(cls, addresses: int, max_addresses: int) -> Self:
        """Create an empty table, which no pin refers to.

        Args:
            addresses: How many addresses it is made for; it is at least a page of memory.
            max_addresses: The user's limit, which the header keeps.
        """
        elements = 1 + addresses * 2 // abi.BUCKET_SLOTS + 1 + abi.PROBES
        elements += -elements % _PAGE
        made = cls(bpf_maps.create(abi.TABLE._replace(max_entries=elements)))
        # 63 bits, so that no sum of a part of the seed and a word of an address takes 65.
        seed = tuple(int.from_bytes(os.urandom(8), sys.byteorder) >> 1 for _ in range(5))
        made._set_header(Header(seed, elements - 1 - abi.PROBES, max_addresses, 0))
        return made

    @classmethod
    def open(cls, path: Path, *, readonly: bool = False) -> Self:
        """Open a pinned table.

        Raises:
            NdxdpError: It is not a table of this ABI version.
        """
        found = KernelMap.open(path, abi.TABLE, readonly=readonly)
        return cls(found.fd)

    def duplicate(self) -> Self:
        """Return the same table with a descriptor of its own."""
        return type(self)(os.dup(self.fd))

    def header(self) -> Header:
        """Return the header; raise Damaged if it does not fit the table."""
        data = bpf_maps.lookup(self.fd, _HEADER_KEY, SIZE) or b""
        fields = abi.ADDRESS_TABLE.unpack(data)
        seed = _SEED.unpack(fields["seed"])
        elements = bpf_maps.spec_of(self.fd).max_entries
        if not fields["buckets"] or fields["buckets"] + 1 + abi.PROBES > elements:
            raise damaged(f"the table of addresses has no valid header: {fields}")
        return Header(seed, fields["buckets"], fields["max_addresses"], fields["used"])

    def set_max_addresses(self, max_addresses: int) -> None:
        """Write the user's limit."""
        self._set_header(self.header()._replace(max_addresses=max_addresses))

    def lookup(self, address: bytes) -> int:
        """Return the rule of an address; 0 if it has none."""
        (home,) = self.header().homes(address)
        for element in range(home, home + abi.PROBES):
            bucket = bpf_maps.lookup(self.fd, _U32.pack(element), SIZE) or b""
            *rules, passed = TAIL.unpack_from(bucket, TAIL_AT)
            slot = slot_of(bucket, address)
            if slot >= 0 and rules[slot]:
                return int(rules[slot])
            if not passed:
                break
        return 0

    def count_among(self, addresses: bytes) -> int:
        """Return how many of some addresses have a rule."""
        header = self.header()
        return sum(
            window.find(address, home) is not None
            for window, some in self._windows(addresses)
            for home, (address,) in zip(header.homes(some), _ADDRESS.iter_unpack(some), strict=True)
        )

    def count(self) -> int:
        """Count the addresses, and correct the header's number."""
        used = sum(map(len, self.classes()))
        if used != self.header().used:
            self._set_header(self.header()._replace(used=used))
        return used

    def write(self, addresses: bytes, rules: Iterator[int]) -> Iterator[int]:
        """Write entries, and yield after each piece how many it has.

        Args:
            addresses: The addresses.
            rules: Their rules; one more is taken than is written if there is no room for it.

        The iteration ends early if there is no room for more: too many of the slots are in use, or
        an address finds all of its buckets full.
        """
        header = self.header()
        used = header.used
        # Written before: if this process is killed, the number is too large, never too small.
        self._set_header(header._replace(used=used + len(addresses) // 16))
        try:
            for window, some in self._windows(addresses):
                written, used = write(window, header._replace(used=used), some, rules)
                yield written
                if written < len(some) // 16:
                    return
        finally:
            self._set_header(header._replace(used=used))

    def copy(self, former: AddressTable) -> bool:
        """Write all entries of another table; return False if there is no room for all of them."""
        header = self.header()
        used = header.used
        with self._window(1, header.buckets + abi.PROBES) as window:
            for keys, words in former.pieces():
                present = header._replace(used=used)
                written, used = write(window, present, b"".join(keys), iter(words))
                if written < len(keys):
                    return False
        self._set_header(header._replace(used=used))
        return True

    def remove(self, addresses: bytes) -> Iterator[int]:
        """Remove entries, and yield after each piece how many addresses it had.

        A missing entry is no error.
        """
        header = self.header()
        used = header.used
        try:
            for window, some in self._windows(addresses):
                used -= remove(window, header, some)
                yield len(some) // 16
        finally:
            self._set_header(header._replace(used=max(used, 0)))

    def pieces(self) -> Iterator[tuple[list[bytes], list[int]]]:
        """Yield all entries, many at a time: the addresses, and the rules.

        Entries that are added or removed during the iteration may be missed.
        """
        for buckets in self._buckets():
            keys, words = [], []
            some = (buckets[start : start + _SOME] for start in range(0, len(buckets), _SOME))
            for a, b, c, r, s, t in chain.from_iterable(
                _BUCKET.iter_unpack(each) for each in some if each != _NOTHING
            ):
                if r:
                    keys.append(a)
                    words.append(r)
                if s:
                    keys.append(b)
                    words.append(s)
                if t:
                    keys.append(c)
                    words.append(t)
            yield keys, words

    def classes(self) -> Iterator[memoryview]:
        """Yield the slot of the rule class of each rule, many at a time, as 16 bits."""
        first = slice(None, None, 2) if abi.IS_LITTLE_ENDIAN else slice(1, None, 2)
        for buckets in self._buckets():
            every = memoryview(buckets).cast("I")
            slots = (every[RULE_WORD + n :: BUCKET_WORDS] for n in range(abi.BUCKET_SLOTS))
            words = filter(None, chain.from_iterable(each.tolist() for each in slots))
            yield memoryview(array.array("I", words)).cast("B").cast("H")[first]

    def _set_header(self, header: Header) -> None:
        fields = header._asdict() | {"seed": _SEED.pack(*header.seed)}
        bpf_maps.update(self.fd, _HEADER_KEY, abi.ADDRESS_TABLE.pack(**fields))

    def _windows(self, addresses: bytes) -> Iterator[tuple[Window, bytes]]:
        """Yield windows for writing, each with addresses whose buckets it has."""
        header = self.header()
        if len(addresses) > _FEW * 16:
            with self._window(1, header.buckets + abi.PROBES) as window:
                for start in range(0, len(addresses), _PIECE * 16):
                    yield window, addresses[start : start + _PIECE * 16]
            return
        for start, home in zip(range(0, len(addresses), 16), header.homes(addresses), strict=True):
            with self._window(home, abi.PROBES) as window:
                yield window, addresses[start : start + 16]

    def _buckets(self) -> Iterator[bytes]:
        """Yield all buckets, few at a time: they become a Python object for each address."""
        header = self.header()
        if not header.used:
            return
        end = 1 + header.buckets + abi.PROBES
        if self._is_writable():
            for first in range(1, end, _READ):
                with self._window(first, min(_READ, end - first)) as window:
                    buckets = window.copy()
                yield buckets
            return
        # System calls take ten times as long.
        spec = abi.TABLE._replace(max_entries=bpf_maps.spec_of(self.fd).max_entries)
        for keys, elements in _Elements(spec, self.fd).pieces():
            yield elements[SIZE:] if keys.startswith(_HEADER_KEY) else elements

    def _is_writable(self) -> bool:
        """Return True if the descriptor may write, without which Linux maps no memory."""
        return fcntl.fcntl(self.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR

    @contextlib.contextmanager
    def _window(self, first: int, count: int) -> Iterator[Window]:
        """Map elements into memory during the block."""
        start = first * SIZE
        page = start - start % mmap.ALLOCATIONGRANULARITY
        length = start - page + count * SIZE
        with mmap.mmap(self.fd, length, offset=page) as memory:
            window = Window(memory, start - page, first, count)
            try:
                yield window
            finally:
                window.release()
