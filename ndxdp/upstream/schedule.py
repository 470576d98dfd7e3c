"""The schedule of announcements: which address is announced next, and when. Pure but for the clock.

A series is up to 8 transmissions of one address. Addresses that wait for the same transmission are
in one lane, so that no lane has to be sorted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

PAUSES = (1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between the transmissions of a series.

The first pauses are RETRANS_TIMER (RFC 4861 10). The last transmission is 64 s after the first,
because a switch that runs spanning tree forwards nothing for 30 s after the link has come up.
"""


class Pace:
    """A token bucket as one number (GCRA): the time at which the next frame is due."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        """Start with a full bucket.

        Args:
            rate: Frames per second.
            burst: Frames that may be sent without a pause.
            clock: Returns the time in seconds, monotonic.
        """
        self._interval = 1 / rate
        self._credit = (burst - 1) / rate
        self._clock = clock
        self._due = clock()

    def delay(self) -> float:
        """Return the seconds until the next frame may be sent; 0 if it may be sent now."""
        return max(0.0, self._due - self._credit - self._clock())

    def charge(self) -> None:
        """Count one frame as sent."""
        self._due = max(self._due, self._clock()) + self._interval


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
    """

    before: int
    following: Lane | None
    queue: OrderedDict[bytes, float] = field(default_factory=OrderedDict)

    @property
    def due(self) -> float:
        """The time at which the first address is due. The lane must not be empty."""
        return next(iter(self.queue.values()))

    def take(self) -> bytes:
        """Remove the first address, and return it."""
        address, _ = self.queue.popitem(last=False)
        if not self.queue:  # A dict keeps its memory when it is emptied.
            self.queue = OrderedDict()
        return address


class Schedule:
    """The lanes of one interface, served in this order.

    New addresses go first, then their repetitions; then addresses of restart() with their
    repetitions, then those of refresh().
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Create an empty schedule. clock: returns the time in seconds, monotonic."""
        self._clock = clock
        new, again = _series(), _series()
        self._new, self._again, self._refreshed = new[0], again[0], Lane(0, None)
        self._lanes = [*new, *again, self._refreshed]

    @property
    def waiting(self) -> int:
        """How many addresses wait for the first transmission of a series."""
        return sum(len(lane.queue) for lane in self._lanes if not lane.before)

    @property
    def repeating(self) -> int:
        """How many addresses wait for a repetition."""
        return sum(len(lane.queue) for lane in self._lanes if lane.before)

    @property
    def due(self) -> float | None:
        """The time at which the next transmission is due; None if the schedule is empty."""
        return min((lane.due for lane in self._busy()), default=None)

    def waits_for_first(self, address: bytes) -> bool:
        """Return True if an address waits for the first transmission of its series."""
        return address in self._new.queue or address in self._again.queue

    def next_lane(self) -> Lane | None:
        """Return the first lane whose first address is due, or None."""
        now = self._clock()
        return next((lane for lane in self._busy() if lane.due <= now), None)

    def begin(self, addresses: Iterable[bytes]) -> None:
        """Begin a series for each address, before all others; end the series in progress."""
        now = self._clock()
        others = [lane.queue for lane in self._busy() if lane is not self._new]
        for address in addresses:
            for queue in others:
                queue.pop(address, None)
            self._new.queue[address] = now

    def repeat(self, address: bytes, lane: Lane) -> None:
        """Schedule the transmission after that of `lane`."""
        if lane.following:
            lane.following.queue[address] = self._clock() + PAUSES[lane.before]

    def retry(self, address: bytes) -> None:
        """Schedule the series of an address again, because its transmission was interrupted."""
        self._new.queue[address] = self._clock()

    def remove(self, addresses: Iterable[bytes]) -> None:
        """Remove addresses from all lanes."""
        queues = [lane.queue for lane in self._busy()]
        for address in addresses:
            for queue in queues:
                queue.pop(address, None)

    def restart(self, addresses: Iterable[bytes]) -> None:
        """Begin a series for each address, after new addresses; end all series in progress."""
        now = self._clock()
        for lane in self._busy():
            if lane is not self._new:
                lane.queue.clear()
        self._again.queue.update((each, now) for each in addresses if each not in self._new.queue)

    def refresh(self, addresses: Iterable[bytes]) -> None:
        """Schedule one transmission for each address that does not wait for its first one."""
        now = self._clock()
        self._refreshed.queue.update(
            (each, now) for each in addresses if not self.waits_for_first(each)
        )

    def _busy(self) -> list[Lane]:
        """Return the lanes that have addresses, in the order in which they are served."""
        return [lane for lane in self._lanes if lane.queue]


def _series() -> list[Lane]:
    """Return one lane for each transmission of a series, the first transmission first."""
    made: list[Lane] = []
    for before in range(len(PAUSES), -1, -1):
        made.insert(0, Lane(before, made[0] if made else None))
    return made
