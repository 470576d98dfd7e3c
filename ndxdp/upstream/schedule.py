"""The schedule of announcements: which address is announced next, and when. Pure but for the clock.

A series is up to 8 transmissions of one address. Addresses that wait for the same transmission are
in one lane, so that no lane has to be sorted. Sets of addresses stay packed until it is their turn:
100 000 addresses are announced, forgotten or announced again in the time of a few comparisons of
bytes, so that the event loop has time for other tasks.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Container, Sized
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ndxdp.ndp.profile import Profile
from ndxdp.rules.address_set import EMPTY, AddressSet

SLICE = 256
"""Addresses that are queued at once, in 0.1 ms. The others of a larger set stay packed."""

PAUSES = (1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between the transmissions of a series.

The first pauses are RETRANS_TIMER (RFC 4861 10). The last transmission is 64 s after the first,
because a switch that runs spanning tree forwards nothing for 30 s after the link has come up.
"""


class _Members(Container[bytes], Sized, Protocol):
    """A set of addresses that can be searched."""


@dataclass(slots=True)
class Lane:
    """The addresses that wait for the same transmission of a series, the first one due first.

    All addresses of a lane wait equally long, so that they become due in the order in which they
    arrived.

    Attributes:
        before: How many transmissions of the series each address has had.
        following: The lane of the next transmission; None for the last.
        queue: The time at which each address is due. A plain dict would be slow: to find its first
            key, it skips the gaps of all keys that were removed before.
        stock: Sets of addresses that are due, after those of the queue.
    """

    before: int
    following: Lane | None
    queue: OrderedDict[bytes, float] = field(default_factory=OrderedDict)
    stock: list[AddressSet] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.queue) + sum(map(len, self.stock))

    def __bool__(self) -> bool:
        return bool(self.queue or self.stock)

    def __contains__(self, address: bytes) -> bool:
        return address in self.queue or any(address in some for some in self.stock)

    @property
    def due(self) -> float:
        """The time at which the first address is due; -inf: now. The lane must not be empty."""
        return next(iter(self.queue.values()), -math.inf)

    def add(self, addresses: AddressSet) -> None:
        """Add addresses that are due, after all others of the lane."""
        if addresses:
            self.stock.append(addresses)

    def clear(self) -> None:
        """Remove all addresses."""
        self.queue, self.stock = OrderedDict(), []

    def discard(self, gone: AddressSet, members: _Members) -> None:
        """Remove addresses that the lane may have.

        Args:
            gone: The addresses.
            members: The same addresses, in the form that is searched fastest.
        """
        self.stock = [left for some in self.stock if (left := some - gone)]
        if len(gone) <= len(self.queue):
            for address in gone:
                self.queue.pop(address, None)
        else:
            for address in [each for each in self.queue if each in members]:
                del self.queue[address]

    def take(self, now: float) -> bytes:
        """Remove the first address, and return it."""
        if not self.queue:
            some, self.stock[0] = self.stock[0].split(SLICE)
            self.queue.update((address, now) for address in some)
            if not self.stock[0]:
                del self.stock[0]
        address, _ = self.queue.popitem(last=False)
        if not self.queue:  # A dict keeps its memory when it is emptied.
            self.queue = OrderedDict()
        return address


class Turn(NamedTuple):
    """An address whose transmission is due.

    Attributes:
        address: The address.
        before: How many transmissions of the series it has had.
        following: The lane of the next transmission; None for the last.
        changes: The number of changes of the schedule. While it stays the same, the address is
            still in the schedule, and need not be looked up.
        profile: The profile of the address.
    """

    address: bytes
    before: int
    following: Lane | None
    changes: int
    profile: Profile


class Schedule:
    """All addresses of one interface that are announced, and their lanes, served in this order.

    New addresses go first, then their repetitions; then addresses of restart() with their
    repetitions, then those of refresh() and add(). A few new addresses go before many that wait
    already. Transient addresses are those that restart() and refresh() leave to the caller, who
    has to find out first whether they are still there.

    Attributes:
        dropped: How many addresses were not stored, because there was no room.
    """

    def __init__(self, max_addresses: int, clock: Callable[[], float]) -> None:
        """Create an empty schedule.

        Args:
            max_addresses: How many addresses to store; more are counted in `dropped`.
            clock: Returns the time in seconds, monotonic.
        """
        self.dropped = 0
        self._max_addresses, self._clock = max_addresses, clock
        self._changes = 0  # calls that may end a series
        self._known: dict[Profile, AddressSet] = {}
        self._transient = EMPTY
        new, again = _series(), _series()
        self._new, self._again, self._refreshed = new[0], again[0], Lane(0, None)
        self._lanes = [*new, *again, self._refreshed]

    def __contains__(self, address: object) -> bool:
        return any(address in some for some in self._known.values())

    def profile(self, address: bytes) -> Profile | None:
        """Return the profile of an address; None if the address is not announced."""
        return next((each for each, some in self._known.items() if address in some), None)

    @property
    def known(self) -> int:
        """How many addresses are stored."""
        return sum(map(len, self._known.values()))

    @property
    def waiting(self) -> int:
        """How many addresses wait for the first transmission of a series."""
        return sum(len(lane) for lane in self._lanes if not lane.before)

    @property
    def new(self) -> int:
        """How many new addresses wait for the first transmission of their series."""
        return len(self._new)

    @property
    def repeating(self) -> int:
        """How many addresses wait for a repetition."""
        return sum(len(lane) for lane in self._lanes if lane.before)

    @property
    def unpacked(self) -> int:
        """How many addresses wait as objects of their own."""
        return sum(len(lane.queue) for lane in self._lanes)

    @property
    def due(self) -> float | None:
        """The time at which the next transmission is due; None if the schedule is empty."""
        return min((lane.due for lane in self._lanes if lane), default=None)

    # ---- changes

    def begin(self, addresses: AddressSet, profile: Profile, *, transient: bool = False) -> None:
        """Begin a series for each address, before all others; end the series in progress."""
        addresses = self._store(addresses, profile, self._new, transient=transient)
        if len(addresses) > SLICE:
            self._new.add(_without(addresses, self._new))
        else:
            now = self._clock()
            new = [address for address in addresses if address not in self._new]
            self._new.queue.update((address, now) for address in new)

    def add(self, addresses: AddressSet, profile: Profile) -> None:
        """Schedule one transmission of transient addresses, after all others.

        Addresses that wait for their first transmission keep their place.
        """
        addresses = _without(addresses, self._new)
        addresses = self._store(addresses, profile, self._refreshed, transient=True)
        self._refreshed.add(_without(addresses, self._refreshed))

    def _store(
        self, addresses: AddressSet, profile: Profile, lane: Lane, *, transient: bool
    ) -> AddressSet:
        """Store addresses as far as there is room, and remove them from all lanes but one.

        Returns:
            The addresses that are stored.
        """
        self._changes += 1
        unknown = addresses
        for some in self._known.values():
            unknown -= some
        _, excess = unknown.split(max(0, self._max_addresses - self.known))
        self.dropped += len(excess)
        addresses -= excess
        self._remove(addresses, [each for each in self._lanes if each is not lane])
        self._known[profile] = self._known.get(profile, EMPTY) | addresses
        if transient:
            self._transient |= addresses
        return addresses

    def remove(self, addresses: AddressSet) -> None:
        """Forget addresses, and end their series."""
        self._changes += 1
        self._remove(addresses, self._lanes)

    def _remove(self, addresses: AddressSet, lanes: list[Lane]) -> None:
        """Forget addresses, and remove them from some lanes."""
        left = {profile: some - addresses for profile, some in self._known.items()}
        self._known = {profile: some for profile, some in left.items() if some}
        self._transient -= addresses
        members = frozenset(addresses) if self._known and len(addresses) > SLICE else addresses
        for lane in lanes:
            if not self._known:
                lane.clear()
            elif lane:
                lane.discard(addresses, members)

    def restart(self) -> None:
        """Begin a series for each address, after new addresses; end all series in progress."""
        self._changes += 1
        for lane in self._lanes:
            if lane is not self._new:
                lane.clear()
        for some in self._known.values():
            self._again.add(_without(some - self._transient, self._new))

    def refresh(self) -> None:
        """Schedule one transmission for each address that does not wait for its first one.

        Addresses that are left of the last call go first.
        """
        for some in self._known.values():
            due = _without(some - self._transient, self._new, self._again, self._refreshed)
            self._refreshed.add(due)

    # ---- transmissions

    def take(self) -> Turn | None:
        """Return the first address that is due, removed from its lane; None if none is due."""
        now = self._clock()
        for lane in self._lanes:
            if lane and lane.due <= now:
                address = lane.take(now)
                profile = self.profile(address)
                assert profile is not None, "an address that is forgotten is in no lane"
                return Turn(address, lane.before, lane.following, self._changes, profile)
        return None

    def profile_now(self, turn: Turn) -> Profile | None:
        """Return the present profile of an address; None if it was forgotten."""
        return turn.profile if turn.changes == self._changes else self.profile(turn.address)

    def repeat(self, turn: Turn) -> None:
        """Schedule the next transmission of a series."""
        if turn.following is not None:
            turn.following.queue[turn.address] = self._clock() + PAUSES[turn.before]

    def retry(self, turn: Turn) -> None:
        """Schedule the series of an address again, because its transmission was interrupted."""
        if not self._is_superseded(turn.address):
            self._new.queue[turn.address] = self._clock()

    def is_over(self, turn: Turn) -> bool:
        """Return True if the address was forgotten, or begins another series."""
        return turn.changes != self._changes and self._is_superseded(turn.address)

    def _is_superseded(self, address: bytes) -> bool:
        begins = address in self._new or address in self._again
        return begins or address not in self


def _series() -> list[Lane]:
    """Return one lane for each transmission of a series, the first transmission first."""
    made: list[Lane] = []
    for before in range(len(PAUSES), -1, -1):
        made.insert(0, Lane(before, made[0] if made else None))
    return made


def _without(addresses: AddressSet, *lanes: Lane) -> AddressSet:
    """Return the addresses that do not wait in some lanes."""
    for lane in lanes:
        for some in (*lane.stock, AddressSet.of(lane.queue)):
            addresses -= some
    return addresses
