"""Rule classes, or their counters, by slot: in one map, or in an array and a hash."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator

from ndxdp.store.map_files import Map

_U32 = struct.Struct("=I")


class SlotMap:
    """The values of all slots.

    In the kernel, the first slots are elements of an array, and each further slot in use has an
    entry in a hash. In userspace mode, one file has all slots, and grows.
    """

    def __init__(self, first: Map, more: Map | None, first_slots: int) -> None:
        """Take the open maps, which the caller closes.

        Args:
            first: The array.
            more: The hash; None if the array has all slots.
            first_slots: The number of slots that the array has in the kernel.
        """
        self._first, self._more, self._first_slots = first, more, first_slots

    @property
    def value_size(self) -> int:
        """Bytes of a value; of counters in the kernel, of the values of all CPUs."""
        return self._first.value_size

    def lookup(self, slot: int) -> bytes | None:
        """Return the value of a slot; None if the slot has never been in use."""
        return self._map_of(slot).lookup(_U32.pack(slot))

    def update(self, values: Iterable[tuple[int, bytes]]) -> None:
        """Write the values of slots."""
        parts: dict[Map, list[tuple[int, bytes]]] = {}
        for slot, value in values:
            parts.setdefault(self._map_of(slot), []).append((slot, value))
        for target, part in parts.items():
            keys = b"".join(_U32.pack(slot) for slot, _ in part)
            target.update(keys, b"".join(value for _, value in part))

    def clear(self, slots: Iterable[int]) -> None:
        """Fill the values of slots with zeros, or remove their entries."""
        slots = list(slots)
        zeros = bytes(self.value_size)
        self.update((slot, zeros) for slot in slots if self._is_first(slot))
        if self._more is not None:
            self._more.delete(b"".join(_U32.pack(n) for n in slots if not self._is_first(n)))

    def items(self) -> Iterator[tuple[int, bytes]]:
        """Yield the slots with their values, those that are not in use included."""
        for each in (self._first, self._more):
            if each is not None:
                for key, value in each.items():
                    yield _U32.unpack(key)[0], value

    def marked(self, at: int) -> Iterator[tuple[int, bytes]]:
        """Yield the slots whose value has another byte than 0 at an offset, with their values.

        The others, which may be all but one of a thousand, get no Python object.
        """
        size = self.value_size
        for each in (self._first, self._more):
            for keys, values in each.pieces() if each is not None else ():
                count = len(keys) // _U32.size
                for number in itertools.compress(range(count), values[at::size]):
                    slot = _U32.unpack_from(keys, number * _U32.size)[0]
                    yield slot, values[number * size : (number + 1) * size]

    def first_items(self) -> Iterator[tuple[int, bytes]]:
        """Yield the slots that the array has in the kernel with their values."""
        for key, value in itertools.islice(self._first.items(), self._first_slots):
            yield _U32.unpack(key)[0], value

    def further(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the other slots with their values, many at a time, each kind concatenated."""
        if self._more is not None:
            yield from self._more.pieces()
            return
        for keys, values in self._first.pieces():
            yield (
                keys[self._first_slots * _U32.size :],
                values[self._first_slots * self.value_size :],
            )

    def _is_first(self, slot: int) -> bool:
        return self._map_of(slot) is self._first

    def _map_of(self, slot: int) -> Map:
        if self._more is None or slot < self._first_slots:
            return self._first
        return self._more
