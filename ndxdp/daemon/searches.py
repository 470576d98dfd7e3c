"""The neighbours that the kernel is soliciting for a resolver, in a bounded number of places.

The gateways have half of the places, so that other nodes cannot take all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ndxdp.ndp.decision import Match
from ndxdp.ndp.message import Solicitation

_SOLICITORS_MAX = 8
"""The most solicitors that one neighbour's advertisement is sent to."""


class Solicitor(NamedTuple):
    """A solicitor that waits for an advertisement.

    Attributes:
        solicitation: Its solicitation.
        rule: The rule that matches the target.
        until: The time after which it is not answered, in s of CLOCK_MONOTONIC.
    """

    solicitation: Solicitation
    rule: Match
    until: float


@dataclass
class Search:
    """A neighbour that the kernel is soliciting.

    Attributes:
        ifindex: The interface on which the kernel solicits it.
        began: When the search began, in s of CLOCK_MONOTONIC.
        for_gateway: The search has one of the gateways' places.
        timeout: Ends the search.
        solicitors: By the source and the link-layer peer of the solicitation.
    """

    ifindex: int
    began: float
    for_gateway: bool
    timeout: asyncio.TimerHandle
    solicitors: dict[tuple[bytes, bytes], Solicitor] = field(default_factory=dict)

    def join(self, ns: Solicitation, rule: Match, until: float) -> None:
        """Answer a solicitation, too, if there are not too many of them."""
        key = ns.source, ns.peer
        if len(self.solicitors) < _SOLICITORS_MAX or key in self.solicitors:
            self.solicitors[key] = Solicitor(ns, rule, until)


class Searches:
    """Searches by their target, an address of 16 bytes, in the order in which they began."""

    def __init__(self, places: int) -> None:
        """Have no search yet.

        Args:
            places: The most searches at a time; half of them are for gateways.
        """
        self._places = max(places // 2, 1)  # of each kind
        self._taken = {False: 0, True: 0}  # by for_gateway
        self._by_target: dict[bytes, Search] = {}

    def __len__(self) -> int:
        return len(self._by_target)

    def __iter__(self) -> Iterator[tuple[bytes, Search]]:
        return iter(self._by_target.items())

    def get(self, target: bytes) -> Search | None:
        """Return the search for a target; None if there is none."""
        return self._by_target.get(target)

    def add(self, target: bytes, search: Search) -> None:
        """Add the search for a target that has none."""
        self._by_target[target] = search
        self._taken[search.for_gateway] += 1

    def remove(self, target: bytes) -> Search:
        """Remove the search for a target, and return it."""
        search = self._by_target.pop(target)
        self._taken[search.for_gateway] -= 1
        return search

    def has_place(self, *, for_gateway: bool) -> bool:
        """Return True if there is a free place, for a gateway or for another node."""
        return self._taken[for_gateway] < self._places

    def oldest(self, *, for_gateway: bool) -> tuple[bytes, Search]:
        """Return the search that began first, and its target, of a kind that has no free place."""
        return next(each for each in self if each[1].for_gateway == for_gateway)
