"""When the addresses that this host answers for are probed, so that rivals show themselves. Pure.

A node that has an address by its own configuration announces nothing, and answers its router only.
It defends the address against Duplicate Address Detection, though, by an advertisement to all nodes
(RFC 4862 section 5.4.3). Members of the segment that do not hold the address stay silent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

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

    def hold(self, addresses: Collection[bytes], now: float) -> None:
        """Take the addresses (16 bytes each) that this host answers for.

        Args:
            addresses: A set, or the keys of a dict.
            now: The time in seconds, monotonic.
        """
        for lane in (self._new, self._again):
            for address in [each for each in lane if each not in addresses]:
                del lane[address]
        for address in addresses:
            if address not in self._new and address not in self._again:
                self._new[address] = now + FIRST

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
