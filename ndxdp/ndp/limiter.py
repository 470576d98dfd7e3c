"""Rate limits of answers. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ndxdp.ndp.reason import Reason


class Rate(NamedTuple):
    """A rate limit as a token bucket.

    Attributes:
        interval: Nanoseconds that one token takes to grow; 0 for no limit.
        credit: Nanoseconds of tokens that a full bucket has beyond the first token:
            (burst - 1) intervals.
    """

    interval: int = 0
    credit: int = 0

    @property
    def per_second(self) -> float:
        """How many answers per second the limit admits; 0 without a limit."""
        return 1e9 / self.interval if self.interval else 0


_UNLIMITED = Rate()


class Limits(NamedTuple):
    """The rate limits of one interface.

    Attributes:
        each: The limit of one soliciting MAC, and of one MAC that is answered.
        total: The limit of all MACs together, except gateways.
        gateway: The limit of each gateway, which the other two do not apply to.
    """

    each: Rate = _UNLIMITED
    total: Rate = _UNLIMITED
    gateway: Rate = _UNLIMITED

    def __bool__(self) -> bool:
        """Return True if a limit applies.

        Without `each` and `total` no limit applies: then gateways have none either.
        """
        return bool(self.each.interval or self.total.interval)


_TOTAL = b""
"""The key of the bucket that all MACs except gateways share; no MAC is empty."""


class Limiter:
    """The token buckets of one interface.

    Each bucket is one number: the time up to which its tokens are spent (GCRA). At most `size` MACs
    have a bucket of their own; a new MAC replaces the one that was answered least recently.

    Attributes:
        gateways: The MACs of the gateways, 6 bytes each. The caller may replace the set.
    """

    def __init__(self, limits: Limits, clock: Callable[[], int], size: int = 8192) -> None:
        """Make buckets that are full.

        Args:
            limits: The limits.
            clock: Returns monotonic nanoseconds.
            size: The number of MACs that are remembered.
        """
        self.gateways: frozenset[bytes] = frozenset()
        self._limits, self._clock, self._size = limits, clock, size
        self._spent: dict[bytes, int] = {}
        self._shared: dict[bytes, int] = {}

    def charge(self, eth_source: bytes, peer: bytes) -> Reason | None:
        """Charge one answer, or return the reason for not sending it and charge nothing.

        Both MACs have a bucket, because a node can forge `eth_source` and make other hosts send
        frames to `peer`.

        Args:
            eth_source: The MAC that solicits.
            peer: The MAC that is answered.
        """
        each, total, gateway = self._limits
        now = self._clock()
        if peer == eth_source and peer in self.gateways:
            until = _spend(self._shared.get(peer, now), now, gateway)
            if until is None:
                return Reason.GATEWAY_LIMITED
            self._shared[peer] = until
            return None
        shared = _spend(self._shared.get(_TOTAL, now), now, total)
        by_source = _spend(self._spent.get(eth_source, now), now, each)
        by_peer = _spend(self._spent.get(peer, now), now, each)
        if shared is None or by_source is None or by_peer is None:
            return Reason.RATE_LIMITED
        self._shared[_TOTAL] = shared
        if each.interval:
            self._charge(eth_source, by_source)
            if peer != eth_source:
                self._charge(peer, by_peer)
        return None

    def _charge(self, mac: bytes, until: int) -> None:
        self._spent.pop(mac, None)
        self._spent[mac] = until
        if len(self._spent) > self._size:
            del self._spent[next(iter(self._spent))]


def _spend(spent: int, now: int, limit: Rate) -> int | None:
    """Return the time up to which a bucket is spent after one more token; None if it is empty."""
    until = max(spent, now)
    return None if until - now > limit.credit else until + limit.interval
