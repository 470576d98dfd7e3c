"""Announcements of addresses that were just learned, for routers that have them elsewhere. Pure.

A guest may have come from another host of the upstream link. Until an advertisement reaches the
router, it sends the guest's packets there.

Times are seconds of one monotonic clock, addresses have 16 bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from ndxdp.pace import Pace

TIMES = 3
"""How often an address is announced: MAX_NEIGHBOR_ADVERTISEMENT (RFC 4861 section 10)."""

PAUSE = 1.0
"""Seconds between the announcements of an address: RETRANS_TIMER (RFC 4861 section 7.2.6)."""

RATE = 200.0
"""Announcements per second, of all addresses together."""

BURST = 32
"""Announcements that may be sent at once after a quiet time."""


class Announcements:
    """The addresses that are to be announced, at most as many as there are learned hosts.

    New addresses come before those that are announced again.
    """

    def __init__(self) -> None:
        self._first: OrderedDict[bytes, None] = OrderedDict()
        # The time and what is left, in the order of the time, because all pauses are equal.
        self._again: OrderedDict[bytes, tuple[float, int]] = OrderedDict()
        self._now = 0.0  # the time of the last take()
        self._pace = Pace(RATE, BURST, lambda: self._now)

    def __len__(self) -> int:
        return len(self._first) + len(self._again)

    def __contains__(self, address: bytes) -> bool:
        return address in self._first or address in self._again

    def add(self, address: bytes) -> None:
        """Announce an address as soon as the rate admits it, and then again."""
        self._again.pop(address, None)
        self._first[address] = None

    def postpone(self, address: bytes, now: float) -> None:
        """Announce an address in a while, if it is to be announced: it may have left."""
        if address not in self:
            return
        _, left = self._again.pop(address, (now, TIMES))
        self._first.pop(address, None)
        self._again[address] = now + PAUSE, left

    def discard(self, address: bytes) -> None:
        """Do not announce an address any more."""
        self._first.pop(address, None)
        self._again.pop(address, None)

    def due(self) -> float | None:
        """Return the time, perhaps past, of the next announcement; None without one."""
        if not self:
            return None
        earliest = self._now + self._pace.delay()
        if self._first:
            return earliest
        at, _ = self._again[next(iter(self._again))]
        return max(at, earliest)

    def take(self, now: float) -> Iterator[bytes]:
        """Yield each address to announce now."""
        self._now = now
        while (due := self.due()) is not None and due <= now:
            if self._first:
                address, _ = self._first.popitem(last=False)
                left = TIMES - 1
            else:
                address, (_, left) = self._again.popitem(last=False)
                left -= 1
            self._pace.charge()
            if left:
                self._again[address] = now + PAUSE, left
            yield address
