"""Rate limits of answers. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ndxdp.ndp.reason import Reason


class Rate(NamedTuple):
    """A bound on how often something may happen.

    interval: ns between two; 0 for no limit. credit: ns that one may run ahead, which is
        (burst - 1) intervals.
    """

    interval: int = 0
    credit: int = 0


_UNLIMITED = Rate()


class Limits(NamedTuple):
    """The limits of one interface.

    each: for one MAC that solicits, and for one that is answered. total: for all of them
    together. gateway: for each gateway, instead of these two.
    """

    each: Rate = _UNLIMITED
    total: Rate = _UNLIMITED
    gateway: Rate = _UNLIMITED

    def __bool__(self) -> bool:
        """True if anything is limited: gateways alone are not."""
        return bool(self.each.interval or self.total.interval)


_TOTAL = b""
"""What the bucket of everybody but the gateways is kept under, which is no MAC."""


class Limiter:
    """Token buckets, each one number: the time up to which its tokens are paid for (GCRA).

    clock: ns, monotonic. At most `size` MACs are remembered; the one not answered for longest is
    forgotten first. gateways: MACs (6 bytes) of the gateways, which the caller may set anew.
    """

    def __init__(self, limits: Limits, clock: Callable[[], int], size: int = 8192) -> None:
        self.gateways: frozenset[bytes] = frozenset()
        self._limits, self._clock, self._size = limits, clock, size
        self._paid: dict[bytes, int] = {}
        self._shares: dict[bytes, int] = {}

    def charge(self, eth_source: bytes, peer: bytes) -> Reason | None:
        """Charge one answer; return why it may not be sent, with nothing charged, or None.

        Args:
            eth_source: The MAC that solicits.
            peer: The MAC that is answered. Anybody can forge the first to have others send frames
                to the second, so that each has a bucket.
        """
        each, total, gateway = self._limits
        now = self._clock()
        if peer == eth_source and peer in self.gateways:
            until = _with_one_more(self._shares.get(peer, now), now, gateway)
            if until is None:
                return Reason.GATEWAY_LIMITED
            self._shares[peer] = until
            return None
        shared = _with_one_more(self._shares.get(_TOTAL, now), now, total)
        by_source = _with_one_more(self._paid.get(eth_source, now), now, each)
        by_peer = _with_one_more(self._paid.get(peer, now), now, each)
        if shared is None or by_source is None or by_peer is None:
            return Reason.RATE_LIMITED
        self._shares[_TOTAL] = shared
        if each.interval:
            self._pay(eth_source, by_source)
            if peer != eth_source:
                self._pay(peer, by_peer)
        return None

    def _pay(self, mac: bytes, until: int) -> None:
        self._paid.pop(mac, None)
        self._paid[mac] = until
        if len(self._paid) > self._size:
            del self._paid[next(iter(self._paid))]


def _with_one_more(paid: int, now: int, limit: Rate) -> int | None:
    """The time up to which a bucket is paid for with one token more; None if it is empty."""
    until = max(paid, now)
    return None if until - now > limit.credit else until + limit.interval
