"""How many claims and lookups a share checks (RFC 6583). Pure.

A claim costs solicitations on all other links, and a lookup on all downstream links. So a share
with many links checks fewer of them.
"""

from __future__ import annotations

from ndxdp.ndp.limiter import Limiter, Limits, Rate

_FEW_LINKS = 4  # up to which the rates below hold
_SIZE = 1024  # MACs and links that are remembered


class Rates:
    """The token buckets of claims and of lookups.

    A node with many addresses claims all of them after a reboot. The bucket of its link keeps one
    that forges MACs from taking all that the other links need.
    """

    def __init__(self, links: int) -> None:
        """Start with full buckets.

        Args:
            links: The number of links of the share.
        """
        self._now = 0
        share = min(1.0, _FEW_LINKS / max(links, 1))
        self._mac = self._limiter(Limits(each=_rate(20, 64)))
        self._link = self._limiter(Limits(each=_rate(250 * share, 500 * share)))
        self._all = self._limiter(Limits(total=_rate(500 * share, 1000 * share)))
        self._lookups = self._limiter(Limits(each=_rate(200 * share, 200 * share)))

    def admits_claim(self, now: float, ifindex: int, mac: bytes, *, one_mac: bool = True) -> bool:
        """Charge a claim, and return True if it may be checked.

        Args:
            now: Monotonic seconds.
            ifindex: The link that it came by.
            mac: Its source MAC, 6 bytes.
            one_mac: False if the MAC may be that of a proxy, whose claims are those of many nodes.
        """
        self._now = int(now * 1e9)
        link = ifindex.to_bytes(4, "big")
        # What one bucket refuses takes nothing from the next one.
        return (
            (not one_mac or self._mac.charge(mac, mac) is None)
            and self._link.charge(link, link) is None
            and self._all.charge(mac, mac) is None
        )

    def admits_lookup(self, now: float, ifindex: int) -> bool:
        """Charge a lookup from a link, and return True if its target may be searched."""
        self._now = int(now * 1e9)
        link = ifindex.to_bytes(4, "big")
        return self._lookups.charge(link, link) is None

    def _limiter(self, limits: Limits) -> Limiter:
        return Limiter(limits, lambda: self._now, _SIZE)


def _rate(per_second: float, burst: float) -> Rate:
    """Return a rate limit with a burst of at least one."""
    interval = int(1e9 / per_second)
    return Rate(interval, int(max(burst - 1, 0) * interval))
