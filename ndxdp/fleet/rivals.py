"""Rivals: other MACs that advertise an address which this host answers for. Pure.

Exactly one host answers for a shared address. An advertisement of it from another MAC shows that
a second host does so, too: one that no lease binds, such as a node with that address of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from ndxdp.ndp.frame import OPTIONS_AT, eth_source_of, target_of
from ndxdp.ndp.message import Fault, parse_advertisement
from ndxdp.rules.address_set import EMPTY, AddressSet
from ndxdp.rules.prefix import Prefix, mask
from ndxdp.rules.ruleset import Rules

GRACE = 1.0
"""Seconds after this host has acquired an address, in which the former holder's frames arrive."""

LOG_PERIOD = 3600.0
"""Seconds between two lines in the log about one address and one MAC."""

PAIRS_MAX = 256
"""The most pairs of address and MAC that are remembered; a new one replaces the oldest."""

_GROUP_BIT = 1  # of a MAC's first byte


class Rival(NamedTuple):
    """Another MAC that advertises an address which this host answers for.

    Attributes:
        address: The address (16 bytes).
        mac: The MAC (6 bytes).
        heard: The number of advertisements.
        last: The time of the last one, in seconds of the clock.
    """

    address: bytes
    mac: bytes
    heard: int
    last: float


class Rivals:
    """The rules that this host answers by, and the rivals that were seen.

    Attributes:
        count: Advertisements from other MACs, so far.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Hold nothing yet.

        Args:
            clock: Returns the time in seconds, monotonic.
        """
        self.count = 0
        self._clock = clock
        self._exact = EMPTY
        self._since: dict[bytes, float] = {}  # of the addresses of _exact
        self._wider: dict[Prefix, float] = {}
        self._lengths: list[int] = []
        # The rival, and when the log has named it.
        self._seen: OrderedDict[tuple[bytes, bytes], tuple[Rival, float]] = OrderedDict()

    def hold(self, rules: Rules) -> tuple[AddressSet, AddressSet]:
        """Take the rules that this host answers by now; the grace of new prefixes begins.

        Few changes of many addresses cost little.

        Returns:
            The single addresses that are added, and those that are removed.
        """
        now, exact = self._clock(), rules.addresses
        new, gone = exact - self._exact, self._exact - exact
        for address in gone:
            del self._since[address]
        self._since.update(dict.fromkeys(new, now))
        self._exact = exact
        self._wider = {prefix: self._wider.get(prefix, now) for prefix in rules.wider}
        self._lengths = sorted({prefix.length for prefix in self._wider}, reverse=True)
        return new, gone

    @property
    def holds_any(self) -> bool:
        """True if there is a prefix that this host answers for."""
        return bool(self._since or self._wider)

    def see(self, frame: bytes, own_mac: bytes) -> tuple[Rival, bool] | None:
        """Judge an advertisement; return the rival that has sent it, or None.

        Frames about other targets cost little, as most frames of a flood are of this kind.
        An advertisement that names this host's MAC is none of a rival: switches that suppress
        multicast, and repeaters, send it in the place of this host.

        Args:
            frame: The frame, without a VLAN tag.
            own_mac: The MAC (6 bytes) that this host answers with.

        Returns:
            The rival, and True if the log should name it.
        """
        mac = eth_source_of(frame)
        if len(frame) < OPTIONS_AT or mac == own_mac or not self._holds(target_of(frame)):
            return None
        found = parse_advertisement(frame)
        if isinstance(found, Fault) or found.lladdr == own_mac or mac[0] & _GROUP_BIT:
            return None
        return self._add(found.target, mac)

    def seen(self, most: int) -> list[Rival]:
        """Return the rivals that were seen last, the latest first."""
        found = list(self._seen.values())[-most:]  # at once, as another thread may call this
        return [rival for rival, _ in reversed(found)]

    def _holds(self, target: bytes) -> bool:
        """Return True if this host has answered for a target for longer than the grace."""
        since = self._since.get(target)
        for length in self._lengths:
            if since is None:
                since = self._wider.get(Prefix(mask(target, length), length))
        return since is not None and self._clock() >= since + GRACE

    def _add(self, address: bytes, mac: bytes) -> tuple[Rival, bool]:
        self.count += 1
        now = self._clock()
        before, logged = self._seen.pop((address, mac), (None, now))
        is_news = before is None or now >= logged + LOG_PERIOD
        rival = Rival(address, mac, before.heard + 1 if before else 1, now)
        self._seen[address, mac] = (rival, now if is_news else logged)
        if len(self._seen) > PAIRS_MAX:
            self._seen.popitem(last=False)
        return rival, is_news
