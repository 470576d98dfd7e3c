"""Buckets of a table of exact addresses in memory: entries are found, written and removed.

bpf/ndp_abi.h describes the table (struct ndp_address_table), and the order of the writes.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ndxdp.kernel import abi

_U64_MAX, _U32_SIZE = (1 << 64) - 1, 1 << 32
_WORDS = struct.Struct("=Q2I")  # an address: its first two words as one, and the others
_FIRST, _HALVES = struct.Struct("=Q"), struct.Struct("=2I")
_ADDRESS = struct.Struct("16s")
TAIL = struct.Struct("=4I")
"""The rules of a bucket, and `passed`."""

SIZE, TAIL_AT = abi.BUCKET.size, abi.BUCKET.offsets()["rules"][0]
RULE_WORD, BUCKET_WORDS = TAIL_AT // 4, SIZE // 4
_PASSED_WORD = BUCKET_WORDS - 1


class Header(NamedTuple):
    """The header of a table: see struct ndp_address_table."""

    seed: tuple[int, ...]
    buckets: int
    max_addresses: int
    used: int

    @property
    def room(self) -> int:
        """How many addresses the table is made for: half of its slots."""
        return self.buckets * abi.BUCKET_SLOTS // 2

    def homes(self, addresses: bytes) -> list[int]:
        """Return the element in which each address is looked for first, as ndp_bucket_of() does."""
        s, t, u, v, w = self.seed
        buckets, homes = self.buckets, []
        prefix, hashed = -1, 0  # most addresses begin like the one before
        for first, c, d in _WORDS.iter_unpack(addresses):
            if first != prefix:
                prefix = first
                a, b = _HALVES.unpack(_FIRST.pack(first))
                hashed = s + (a + t) * (b + u)
            homes.append(1 + ((hashed + (c + v) * (d + w) & _U64_MAX) >> 32) * buckets // _U32_SIZE)
        return homes


class _Place(NamedTuple):
    """A slot: the first bucket of its address, how many buckets lie between, and the slot there."""

    home: int
    distance: int
    slot: int

    @property
    def bucket(self) -> int:
        """The element that has the slot."""
        return self.home + self.distance


class Window:
    """Some elements of the table in memory.

    Attributes:
        memory: The bytes of the elements, with some before and behind them.
        skip: The number of bytes before them.
        first: The number of the first element.
        words: The elements as integers.
    """

    def __init__(self, memory: mmap.mmap, skip: int, first: int, count: int) -> None:
        self.memory, self.skip, self.first = memory, skip, first
        self._bytes = memoryview(memory)[skip : skip + count * SIZE]
        self.words = self._bytes.cast("I")

    def release(self) -> None:
        """Release the views, without which the memory cannot be unmapped."""
        self.words.release()
        self._bytes.release()

    def copy(self) -> bytes:
        """Return the bytes of the elements."""
        return bytes(self._bytes)

    def find(self, address: bytes, home: int) -> _Place | None:
        """Return the slot of an address that has a rule; None if it has none."""
        for distance in range(abi.PROBES):
            *rules, passed = self._tail(home + distance)
            slot = self._slot(home + distance, address)
            if slot >= 0 and rules[slot]:
                return _Place(home, distance, slot)
            if not passed:
                break
        return None

    def free(self, home: int) -> _Place | None:
        """Return the first slot that is free; None if there is none."""
        for distance in range(abi.PROBES):
            *rules, _ = self._tail(home + distance)
            if 0 in rules:
                return _Place(home, distance, rules.index(0))
        return None

    def insert(self, place: _Place, address: bytes, rule: int) -> None:
        """Write an address that the table does not have into a free slot."""
        self._pass_by(place, 1)
        start = self.skip + (place.bucket - self.first) * SIZE + place.slot * 16
        self.memory[start : start + 16] = address
        self.set_rule(place, rule)

    def remove(self, place: _Place) -> None:
        """Remove an entry."""
        self.set_rule(place, 0)
        self._pass_by(place, -1)

    def set_rule(self, place: _Place, rule: int) -> None:
        """Write the rule of a slot."""
        bucket = (place.bucket - self.first) * BUCKET_WORDS
        self.words[bucket + RULE_WORD + place.slot] = rule

    def _tail(self, element: int) -> tuple[int, ...]:
        start = self.skip + (element - self.first) * SIZE + TAIL_AT
        return TAIL.unpack_from(self.memory, start)

    def _slot(self, element: int, address: bytes) -> int:
        """Return the slot that has an address, be it valid or not; -1 if there is none."""
        start = self.skip + (element - self.first) * SIZE
        return slot_of(self.memory[start : start + SIZE], address)

    def _pass_by(self, place: _Place, step: int) -> None:
        """Change `passed` of the buckets that precede an address's own."""
        for element in range(place.home, place.bucket):
            self.words[(element - self.first) * BUCKET_WORDS + _PASSED_WORD] += step


def write(
    window: Window, header: Header, addresses: bytes, rules: Iterator[int]
) -> tuple[int, int]:
    """Write entries whose buckets are in a window.

    Returns:
        How many were written, and how many entries the table has then.
    """
    memory, words, base = window.memory, window.words, window.skip - window.first * SIZE
    used, room, written = header.used, header.room, 0
    for home, (address,), rule in zip(
        header.homes(addresses), _ADDRESS.iter_unpack(addresses), rules, strict=False
    ):
        # Most addresses are in their first bucket, or have room there: here, without a call, as a
        # call takes half as long as all the rest.
        start = base + home * SIZE
        bucket = memory[start : start + SIZE]
        r, s, t, passed = TAIL.unpack_from(bucket, TAIL_AT)
        at = bucket.find(address) if r or s or t else -1
        if at < 0 and not (t or passed) and used < room:
            slot = (2 if s else 1) if r else 0
            memory[start + slot * 16 : start + slot * 16 + 16] = address
            words[(home - window.first) * BUCKET_WORDS + RULE_WORD + slot] = rule
            used += 1
        elif (at == 0 and r) or (at == 16 and s) or (at == 32 and t):
            words[(home - window.first) * BUCKET_WORDS + RULE_WORD + at // 16] = rule
        else:
            place = window.find(address, home)
            if place:
                window.set_rule(place, rule)
            else:
                place = window.free(home) if used < room else None
                if not place:
                    break
                window.insert(place, address, rule)
                used += 1
        written += 1
    return written, used


def remove(window: Window, header: Header, addresses: bytes) -> int:
    """Remove entries whose buckets are in a window; return how many there were."""
    memory, words, base = window.memory, window.words, window.skip - window.first * SIZE
    removed = 0
    for home, (address,) in zip(
        header.homes(addresses), _ADDRESS.iter_unpack(addresses), strict=True
    ):
        start = base + home * SIZE
        at = memory.find(address, start, start + TAIL_AT)
        if at >= 0 and not (at - start) % 16:  # most are in their first bucket, as above
            word = (home - window.first) * BUCKET_WORDS + RULE_WORD + (at - start) // 16
            if words[word]:
                words[word] = 0
                removed += 1
                continue
        place = window.find(address, home)
        if place:
            window.remove(place)
            removed += 1
    return removed


def slot_of(bucket: bytes, address: bytes) -> int:
    """Return the slot of a bucket that has an address, be it valid or not; -1 if there is none."""
    at = bucket.find(address, 0, TAIL_AT)
    while at % 16 and at >= 0:
        at = bucket.find(address, at + 1, TAIL_AT)
    return at // 16
