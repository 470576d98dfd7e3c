"""The prefixes of the upstream link that its nodes have addresses of. Pure.

These are the on-link prefixes, the Prefix List of RFC 4861 section 5.1, and those of which nodes
form addresses (SLAAC) although they send everything to the router.

Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ndxdp.ndp.address import is_link_local, is_multicast
from ndxdp.rules.prefix import Prefix

SHORTEST, LONGEST = 32, 127
"""Bits of a prefix that is taken. A shorter one is a provider's whole network, and no link has it;
a longer one is a single address."""

_SIZE = 64


def is_shareable(prefix: Prefix) -> bool:
    """Return True for a prefix that may be shared.

    A link-local prefix is never on-link by an advertisement (RFC 4861 section 6.3.4); multicast
    addresses and those of ::/8, which RFC 4291 section 2.4 reserves, have no links.
    """
    address, length = prefix
    return (
        SHORTEST <= length <= LONGEST
        and bool(address[0])
        and not is_multicast(address)
        and not is_link_local(address)
    )


class PrefixList:
    """The prefixes, each with the end of its valid lifetime; infinity for no end."""

    def __init__(self) -> None:
        """Know no prefix."""
        self._ends: dict[Prefix, float] = {}

    def set_end(self, now: float, prefix: Prefix, end: float) -> bool:
        """Set a prefix's end, which is the last one that was advertised (section 6.3.4).

        Return False if there are too many prefixes to take another one.
        """
        if end <= now:
            self._ends.pop(prefix, None)
            return True
        if prefix not in self._ends:
            self._ends = dict(self._left(now))
            if len(self._ends) >= _SIZE:
                return False
        self._ends[prefix] = end
        return True

    def extend(self, now: float, prefix: Prefix, end: float) -> bool:
        """Let a prefix end no earlier than at a time; return as set_end()."""
        return self.set_end(now, prefix, max(end, self._ends.get(prefix, end)))

    def end_by(self, prefix: Prefix, end: float) -> None:
        """End a prefix at a time at the latest."""
        if prefix in self._ends:
            self._ends[prefix] = min(self._ends[prefix], end)

    def left(self, now: float) -> dict[Prefix, float | None]:
        """Return the prefixes whose lifetime is not over; the end None is for no end."""
        return {prefix: None if math.isinf(end) else end for prefix, end in self._left(now).items()}

    def next_end(self, now: float) -> float:
        """Return the end of the next prefix that ends; infinity if none does."""
        return min(self._left(now).values(), default=math.inf)

    def clear(self) -> None:
        """Forget the prefixes."""
        self._ends.clear()

    def _left(self, now: float) -> Mapping[Prefix, float]:
        return {prefix: end for prefix, end in self._ends.items() if end > now}
