"""When the addresses that this host answers for are probed, so that rivals show themselves. Pure.

A node that has an address by its own configuration announces nothing, and answers its router only.
It defends the address against Duplicate Address Detection, though, by an advertisement to all nodes
(RFC 4862 section 5.4.3). Members of the segment that do not hold the address stay silent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

FIRST = 2.0
"""Seconds from the acquisition of an address to its first probe, when the grace is over."""

PERIOD = 600.0
"""Seconds between two probes of an address."""


class RivalProbes:
    """The addresses, and when each of them is due.

    All addresses of a lane wait equally long, so that the first one is always due first.
    """

    def __init__(self) -> None:
        self._new: OrderedDict[bytes, float] = OrderedDict()
        self._again: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._new) + len(self._again)

    def add(self, addresses: Iterable[bytes], now: float) -> None:
        """Have addresses (16 bytes each) that are not there yet, at a time in monotonic seconds."""
        self._new.update((address, now + FIRST) for address in addresses)

    def remove(self, addresses: Iterable[bytes]) -> None:
        """Have addresses no more."""
        for address in addresses:
            self._new.pop(address, None)
            self._again.pop(address, None)

    def due(self) -> float | None:
        """Return the time of the next probe; None if there is no address."""
        return min(
            (next(iter(lane.values())) for lane in (self._new, self._again) if lane), default=None
        )

    def take(self, now: float) -> bytes | None:
        """Return an address that is due, and probe it again after the period; None if none is."""
        for lane in (self._new, self._again):
            address = next(iter(lane), None)
            if address is not None and lane[address] <= now:
                del lane[address]
                self._again[address] = now + PERIOD
                return address
        return None
