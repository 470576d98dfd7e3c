"""How many shared addresses one host takes and gives up in a second. Pure."""

from __future__ import annotations

PER_SECOND = 1000.0
"""Addresses that a host takes or gives up in a second, in all its segments.

Each of them is a write of etcd, which confirms some thousands in a second for all hosts together,
and an announcement on the link. A host with a hundred addresses is replaced at once all the same.
"""

BURST = 1000.0
"""Addresses that a host may take or give up at once."""

AT_ONCE = 100
"""Addresses of one decision. etcd accepts 128 operations in one transaction by default."""

_PAUSE = 0.1  # seconds; so that an empty bucket fills for one more transaction


class TakeoverRate:
    """A token bucket that all segments of a host share."""

    def __init__(self, per_second: float = PER_SECOND, burst: float = BURST) -> None:
        """Start with a full bucket."""
        self._per_second, self._burst = per_second, burst
        self._tokens, self._filled = burst, 0.0

    def admitted(self, now: float) -> int:
        """Return how many addresses one decision may have now.

        Args:
            now: Monotonic seconds.
        """
        grown = max(now - self._filled, 0.0) * self._per_second
        self._tokens = min(self._tokens + grown, self._burst)
        self._filled = max(now, self._filled)
        return min(int(self._tokens), AT_ONCE)

    def charge(self, count: int) -> None:
        """Take the tokens of some addresses, of which there were enough."""
        self._tokens -= count

    def again(self, now: float) -> float:
        """Return when there are tokens again: `now` if there are some left."""
        return now if self._tokens >= 1 else now + max(_PAUSE, 1 / self._per_second)
