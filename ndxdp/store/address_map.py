"""The map `addresses` in the kernel, whose only element is the table of exact addresses.

The methods are those of a map whose key is an address (16 bytes), and whose value is an abi.RULE.

A table that is full is replaced. A writer fills a larger one with the entries of the present one,
pins it in place of that, and then makes it the element of the map, from which the program takes it.
The program finds each address in both tables, and the larger one changes only when no program has
the former one any more: the kernel waits for that. The pin has the truth: a writer that finds
another table in the map was preceded by one that was killed in between, and completes the change.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from ndxdp import progress
from ndxdp.kernel import abi, bpf_maps, libbpf
from ndxdp.kernel.bpf_maps import KernelMap
from ndxdp.store import only_element, pins
from ndxdp.store.address_table import AddressTable
from ndxdp.store.parked_map import ParkedMap

PIN = abi.TABLE.name
"""The name of the pin of the table."""

_ADDRESS, _RULE, _WORD = (
    struct.Struct("16s"),
    struct.Struct(f"{abi.RULE.size}s"),
    struct.Struct("=I"),
)
_FLAGS_AT, _NOTE_AT = abi.RULE.offsets()["flags"][0], abi.RULE.offsets()["reserved"][0]
_NOTE_SHIFT, _NOTE = 5, 3  # where a slot has the note (records.PauseNote) among the flags
_EXACT = 128  # bits of an address
_LARGER = 11 / 10
"""By how much a table grows in which an address has found all its buckets full. That happens to one
in twelve tables with a million addresses, as each has its own seed; to one in 200 with so much more
room."""
_SMALL = 128  # a table with room for no more is never too large
_SHRINK = 4  # nor is one with room for no more than so many times what it has


class AddressMap:
    """The open map. One process writes at a time; others may read meanwhile.

    Attributes:
        outer: The map that has the table.
        value_size: Bytes of a value.
    """

    def __init__(
        self,
        outer: KernelMap | ParkedMap,
        table: AddressTable,
        directory: Path | None = None,
        *,
        readonly: bool = False,
    ) -> None:
        """Take over the open map and its table.

        Args:
            outer: The map.
            table: The table.
            directory: Where both are pinned; None if they are not.
            readonly: They were opened for reading.
        """
        self.outer, self._table = outer, table
        self._directory, self._readonly = directory, readonly
        self.value_size = abi.RULE.size

    @classmethod
    def create(cls, max_addresses: int = abi.MAX_ADDRESSES) -> Self:
        """Create the map with an empty, small table.

        Args:
            max_addresses: How many addresses it can have.
        """
        table = AddressTable.create(0, max_addresses)
        spec = abi.MAPS["addresses"]
        made = cls(KernelMap(spec, bpf_maps.create(spec, table.fd)), table)
        made._publish()
        return made

    @classmethod
    def open(cls, directory: Path, *, readonly: bool = False) -> Self:
        """Open the pinned map and its table.

        Raises:
            NdxdpError: They are not of this ABI version.
        """
        spec = abi.MAPS["addresses"]
        outer = KernelMap.open(directory / spec.name, spec, readonly=readonly)
        try:
            table = AddressTable.open(directory / PIN, readonly=readonly)
        except BaseException:
            outer.close()
            raise
        return cls(outer, table, directory, readonly=readonly)

    def duplicate(self) -> Self:
        """Return the same map with descriptors of its own."""
        assert isinstance(self.outer, KernelMap), "called for an open map"
        return type(self)(
            self.outer.duplicate(),
            self._current().duplicate(),
            self._directory,
            readonly=self._readonly,
        )

    def pin(self, directory: Path) -> None:
        """Pin the table in a directory, where its successors will be pinned, too."""
        pins.pin(self._writable().fd, directory / PIN)
        self._directory = directory

    def repin(self, directory: Path) -> None:
        """Pin the map and its table in a directory, in place of others, the map last."""
        assert isinstance(self.outer, KernelMap), "called for an open map"
        pins.repin(self._table.fd, directory / PIN)
        pins.repin(self.outer.fd, directory / self.outer.spec.name)
        self._directory = directory

    @property
    def max_entries(self) -> int:
        """How many addresses the map can have."""
        return self._current().header().max_addresses

    def resize(self, max_addresses: int) -> None:
        """Set how many addresses the map can have.

        Raises:
            OSError: It has more of them (E2BIG).
        """
        table = self._writable()
        if table.count() > max_addresses:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        table.set_max_addresses(max_addresses)

    def lookup(self, key: bytes) -> bytes | None:
        """Return the abi.RULE of an address; None if it has none."""
        word = self._current().lookup(key)
        return _value_of(word) if word else None

    def update(self, keys: bytes, values: bytes) -> None:
        """Write entries.

        Raises:
            OSError: There is no room for all of them (E2BIG), and none has been written; or the
                kernel has no memory for a larger table, and some may have been written.
        """
        if not keys:
            return
        words = {value: _word_of(value) for (value,) in {*_RULE.iter_unpack(values)}}
        self._make_room(keys)
        done, count = 0, len(keys) // 16
        while True:
            left = _RULE.iter_unpack(values[done * abi.RULE.size :])
            rules = (words[value] for (value,) in left)
            for written in self._table.write(keys[done * 16 :], rules):
                done += written
                progress.advance(written)
            if done == count:
                return
            self._grow()

    def _make_room(self, keys: bytes) -> None:
        """Replace a table that is far too small for some addresses; raise OSError at the limit."""
        table = self._writable()
        header, count = table.header(), len(keys) // 16
        used = header.used
        if used + count > header.max_addresses:
            used = table.count()  # a writer that was killed leaves a larger number
            if used + count > header.max_addresses:
                count -= table.count_among(keys)
            if used + count > header.max_addresses:
                raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        if used + count > 2 * header.room:
            # Once, and not by doubling several times. Some of the addresses may be there already.
            self._replace(
                max(used + count - (table.count_among(keys) if used > count // 8 else 0), 1)
            )

    def _grow(self) -> None:
        """Replace a table in which an address found no room."""
        table = self._table
        room = table.header().room
        if table.count() < room // 2:  # only another seed is needed
            self._replace(room)
        elif table.count() < room:
            self._replace(_larger(room))
        else:
            self._replace(min(2 * room, table.header().max_addresses))

    def fit(self) -> None:
        """Replace a table that is far larger than its addresses need by a smaller one."""
        table = self._writable()
        used = table.count()
        room = table.header().room
        if room > _SMALL and room > used * _SHRINK:
            self._replace(used)

    def _replace(self, addresses: int) -> None:
        """Replace the table by one for so many addresses, or somewhat larger, with its entries."""
        former = self._table
        limit = former.header().max_addresses
        while True:
            table = AddressTable.create(addresses, limit)
            if table.copy(former):
                break
            addresses = _larger(addresses)
        if self._directory is not None:
            pins.repin(table.fd, self._directory / PIN)
        self._table = table
        self._publish()

    def delete(self, keys: bytes) -> None:
        """Remove entries; a missing entry is no error."""
        if keys:
            for count in self._writable().remove(keys):
                progress.advance(count)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries; see pieces()."""
        for keys, values in self.pieces():
            yield from (
                (key, value)
                for (key,), (value,) in zip(
                    _ADDRESS.iter_unpack(keys), _RULE.iter_unpack(values), strict=True
                )
            )

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries, many at a time: concatenated addresses, and concatenated rules.

        Entries that are added or removed during the iteration may be missed.
        """
        values: dict[int, bytes] = {}
        for keys, words in self._current().pieces():
            for word in {*words} - values.keys():
                values[word] = _value_of(word)
            yield b"".join(keys), b"".join(map(values.__getitem__, words))

    def leading(self, code: str) -> Iterator[memoryview]:
        """Yield the slot of the rule class of each rule, many at a time; `code` is H."""
        assert code == "H", "a rule begins with 16 bits"
        return self._current().classes()

    def close(self) -> None:
        """Close the map."""
        self.outer.close()
        del self._table

    def _current(self) -> AddressTable:
        """Return the table that the program reads, for reading."""
        if self._directory is not None and self._published() != self._table.id:
            self._table = self._pinned() or self._by_number()
        return self._table

    def _writable(self) -> AddressTable:
        """Return the table for writing, and make the program read it. The caller has the lock."""
        if self._directory is not None:
            self._table = self._pinned() or self._by_number()
        if self._published() != self._table.id:
            self._publish()
        return self._table

    def _pinned(self) -> AddressTable | None:
        """Open the pinned table; None if somebody has removed the pin."""
        assert self._directory is not None, "called with pins"
        try:
            found = AddressTable.open(self._directory / PIN, readonly=self._readonly)
        except libbpf.BpfError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        return self._table if found.id == self._table.id else found

    def _by_number(self) -> AddressTable:
        """Return the table that the program reads, if nobody can open it by its pin.

        Without CAP_SYS_ADMIN, this is the table that was open so far. It may be a former one if the
        pins were removed in the moment after another process had replaced it.
        """
        number = self._published()
        if number not in (0, self._table.id):
            with contextlib.suppress(OSError):
                return AddressTable(bpf_maps.open_id(number))
        return self._table

    def _published(self) -> int:
        """Return the number of the table that the program reads; 0 for none."""
        return only_element.number_in(self.outer)

    def _publish(self) -> None:
        """Make the program read the table, and no program another one."""
        only_element.put_into(self.outer, self._table.fd)


def _larger(room: int) -> int:
    return max(int(room * _LARGER), room + 1)


def _word_of(value: bytes) -> int:
    """Return the rule of a slot for an abi.RULE: its first four bytes, and its note as flags."""
    data = bytearray(value[: _WORD.size])
    data[_FLAGS_AT] |= abi.RuleFlag.PRESENT | (value[_NOTE_AT] & _NOTE) << _NOTE_SHIFT
    return int(_WORD.unpack(data)[0])


def _value_of(word: int) -> bytes:
    """Return the abi.RULE for the rule of a slot."""
    data = bytearray(_WORD.pack(word))
    note = data[_FLAGS_AT] >> _NOTE_SHIFT & _NOTE
    data[_FLAGS_AT] &= abi.RuleFlag.OWNED
    return bytes((*data, _EXACT, note)).ljust(abi.RULE.size, b"\0")
