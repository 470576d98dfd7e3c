"""Decisions on which neighbours behind the host are announced, and when. Pure but for the clock.

A guest is a live neighbour behind the host that a `neighbour` rule answers for. When it appears, or
moves to another interface or MAC, the upstream may still send its packets elsewhere: to the host
that it came from. So it is announced at once.

An entry that the kernel has not confirmed for a while (STALE) does not show where a guest lives. To
announce it would take the guest away from the host that it has moved to. So when everything has to
be announced again, at the start or after an interruption of the link, a stale guest is announced
only after the kernel has found it again.

For the same reason, this host looks for a guest whose port has left the bridge, or that another
host claims: it has the kernel forget the entry, so that it no longer answers, and solicit the
guest. A guest that returns later is news, although its entry would otherwise have been as before.
A search in vain is ended early, because Linux ignores the announcements of a guest that returns
while there is a failed entry (ndisc_recv_na()).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable

from ndxdp.ndp.address import is_link_local, is_multicast
from ndxdp.netlink.fib import Neighbour, NudState
from ndxdp.pace import Pace
from ndxdp.upstream.fair_queue import FairQueue
from ndxdp.upstream.guest_tables import Announcing, Kernel, Place

GUESTS_MAX = 65536
"""How many guests are followed. The kernel's table has 1024 neighbours by default (gc_thresh3)."""

UNROUTED_MAX = 1024
"""How many neighbours are remembered to which no route leads yet."""

SETTLING = 1.0
"""Seconds between two announcements of one guest, however often it moves."""

_SEARCH_TIME = 0.5
"""Seconds within which a guest that another host claims answers if it is still here."""

_OVERLAP = 4.0
"""Seconds after an arrival within which the host that the guest came from may still announce it,
because it has not noticed yet: longer than a series of advertisements takes."""

_ROUTE_PERIOD = 0.1  # seconds between two looks for the route to a neighbour
_ROUTE_LOOKS = 50
_FEED_PERIOD = 0.02  # seconds between two looks whether the announcer takes more
_FEED_TIME = 0.05  # seconds: what the announcer sends in this time is handed over at once
_BATCH = (4, 256)  # bounds of the number of addresses that are handed over at once

_CONFIRMED = (NudState.REACHABLE, NudState.PERMANENT)


class Guests:
    """The live neighbours behind one uplink, and what has to be announced of them.

    Attributes:
        arrivals: How often a guest has appeared, or has moved, since the start.
        departures: How often a guest was looked for because it seemed to have left.
        ignored: Changes of neighbours that were not followed because there was no room.
    """

    def __init__(
        self,
        kernel: Kernel,
        announcer: Announcing,
        rate: float,
        clock: Callable[[], float],
        *,
        most: int = GUESTS_MAX,
    ) -> None:
        """Know no guest yet.

        Args:
            kernel: The tables and rules.
            announcer: Sends the announcements.
            rate: Frames per second of the announcer; also how many stale guests per second are
                looked for.
            clock: Returns the time in seconds, monotonic.
            most: How many guests are followed.
        """
        self.arrivals = self.departures = self.ignored = 0
        self._kernel, self._announcer, self._clock, self._most = kernel, announcer, clock, most
        self._batch = min(max(int(rate * _FEED_TIME), _BATCH[0]), _BATCH[1])
        self._pace = Pace(rate, 1, clock)
        self._known: dict[bytes, Place] = {}
        self._noted: set[bytes] | None = None  # guests that appeared while a survey read the table
        self._queue = FairQueue()
        self._recent: OrderedDict[bytes, float] = OrderedDict()
        self._settling: dict[bytes, float] = {}
        self._claimed: OrderedDict[bytes, float] = OrderedDict()
        self._searches: OrderedDict[bytes, tuple[float, int]] = OrderedDict()
        self._arrived: OrderedDict[bytes, float] = OrderedDict()
        self._unconfirmed: set[bytes] = set()
        self._to_confirm: deque[bytes] = deque()
        self._unrouted: dict[bytes, tuple[int, int]] = {}  # the interface, and looks that are left
        self._route_at = 0.0

    @property
    def known(self) -> int:
        """How many guests there are."""
        return len(self._known)

    @property
    def waiting(self) -> int:
        """How many guests wait to be handed over to the announcer."""
        return len(self._queue) + len(self._settling)

    # ---- changes

    def on_change(self, ifindex: int, address: bytes, state: NudState, mac: bytes | None) -> None:
        """Follow a change of a neighbour's entry on an interface behind the host."""
        known = self._known.get(address)
        # Packets alone make a NOARP entry, which does not show that there is anybody.
        if not state.is_valid or state is NudState.NOARP or not mac:
            if known is not None and known.ifindex == ifindex:
                self._forget(address)
            if address in self._unrouted and self._unrouted[address][0] == ifindex:
                del self._unrouted[address]
            if state is NudState.FAILED:
                self._remove_failed(address, ifindex)
        elif known == (ifindex, mac):
            if address in self._unconfirmed and state in _CONFIRMED:
                self._announce_once(address, known)
        elif not is_multicast(address) and not is_link_local(address):
            self._appear(address, Place(ifindex, mac))

    def _remove_failed(self, address: bytes, ifindex: int) -> None:
        """Remove a failed entry.

        As long as there is one, Linux ignores an unsolicited advertisement of the guest
        (ndisc_recv_na()), by which it announces its return.
        """
        if self._kernel.covers(address):
            self._kernel.forget(address, ifindex)

    def on_claim(self, address: bytes) -> None:
        """Look for a guest that another host of the link claims; it has probably moved there."""
        place = self._known.get(address)
        if place is not None:
            self._search(address, place)

    def on_departures(self, gone: Collection[tuple[int, bytes]]) -> None:
        """Look for the guests whose MACs their bridges have forgotten: the ports may have left.

        Args:
            gone: Bridges, and MACs (6 bytes each).
        """
        for address, place in [each for each in self._known.items() if each[1] in gone]:
            self._search(address, place)

    def on_route(self, address: bytes, ifindex: int) -> None:
        """Announce a guest that a share has learned, unless it is known already.

        The share has just heard it. If the kernel has not, have the kernel solicit it. A stale
        entry is as good: the kernel would confirm it only after 5 s (delay_first_probe_time).
        """
        known = self._known.get(address)
        if (known is not None and known.ifindex == ifindex) or not self._kernel.covers(address):
            return
        entry = self._kernel.entry(address, ifindex)
        if entry.mac and entry.state.is_valid:
            self.on_change(ifindex, *entry)
        else:
            self._kernel.confirm(address, ifindex)

    def _search(self, address: bytes, place: Place) -> None:
        now = self._clock()
        _drop_before(now - _SEARCH_TIME, self._claimed)
        if address in self._claimed:
            return
        self.departures += 1
        self._claimed[address] = now
        self._forget(address)
        self._searches.pop(address, None)
        self._searches[address] = now, place.ifindex
        self._kernel.search(address, place.ifindex)

    def _arrive(self, address: bytes, place: Place) -> None:
        """Announce a guest, unless it has been here all the time.

        A guest that answers the search at once has not moved. To announce it again and again
        would be a quarrel with a node that has the same address. Only if it has come a moment ago,
        a claim may be a belated one of the host that it came from.
        """
        now = self._clock()
        _drop_before(now - _SEARCH_TIME, self._claimed)
        _drop_before(now - _OVERLAP, self._arrived)
        if address not in self._claimed:
            self.arrivals += 1
            self._arrived.pop(address, None)
            self._arrived[address] = now
        if address in self._arrived:
            self._queue.put(address, *place)

    def _appear(self, address: bytes, place: Place, looks: int = _ROUTE_LOOKS) -> None:
        """Announce a guest that has appeared, or has moved, once a route leads to it."""
        if not self._kernel.covers(address):
            return
        if self._kernel.profile(address, place.ifindex) is None:
            if looks and (address in self._unrouted or len(self._unrouted) < UNROUTED_MAX):
                if not self._unrouted:
                    self._route_at = self._clock() + _ROUTE_PERIOD
                self._unrouted[address] = place.ifindex, looks
            return
        if self._note(address, place):
            self._arrive(address, place)

    def _note(self, address: bytes, place: Place) -> bool:
        """Note where a guest lives; return False if there is no room for it."""
        if address not in self._known and len(self._known) >= self._most:
            self.ignored += 1
            return False
        self._known[address] = place
        self._unconfirmed.discard(address)
        self._unrouted.pop(address, None)
        if self._noted is not None:
            self._noted.add(address)
        return True

    def _forget(self, address: bytes) -> None:
        del self._known[address]
        self._queue.discard(address)
        self._settling.pop(address, None)
        self._unconfirmed.discard(address)
        self._announcer.forget([address])

    def _announce_once(self, address: bytes, place: Place) -> None:
        """Announce a guest that the kernel has confirmed, unless it waits to be announced."""
        self._unconfirmed.discard(address)
        if address in self._queue or address in self._settling:
            return
        profile = self._kernel.profile(address, place.ifindex)
        if profile is not None:
            self._announcer.announce_once([address], profile)

    # ---- surveys

    def begin_survey(self) -> None:
        """Note from now on which guests appear, until survey() has the kernel's whole table."""
        self._noted = set()

    def end_survey(self, present: Iterable[tuple[int, Neighbour]]) -> None:
        """Forget the guests that are not in the kernel's table, and have not appeared since.

        Args:
            present: The table, as it was read after begin_survey().
        """
        noted, self._noted = self._noted or set(), None
        live = {(ifindex, each.address) for ifindex, each in present if each.state.is_valid}
        gone = [
            address
            for address, place in self._known.items()
            if address not in noted and (place.ifindex, address) not in live
        ]
        for address in gone:
            self._forget(address)

    def look(self, ifindex: int, entry: Neighbour, *, lost: bool, again: bool) -> None:
        """Take one entry of a survey.

        Args:
            ifindex: The interface, which is behind the host.
            entry: The kernel's entry.
            lost: Changes were lost: an unknown guest is a new one.
            again: Announce guests that are known, too.
        """
        address, state, mac = entry
        if state is NudState.FAILED:
            self._remove_failed(address, ifindex)
        if not mac or not state.is_valid or state is NudState.NOARP:
            return
        if is_multicast(address) or is_link_local(address):
            return
        place, known = Place(ifindex, mac), self._known.get(address)
        if not self._kernel.covers(address):
            if known == place:
                self._forget(address)
            return
        if known is None and not lost:
            if self._kernel.profile(address, ifindex) is None:
                return
            if self._note(address, place):
                self._renew(address, place, state)
        elif known != place:
            if lost:
                self._appear(address, place)
        elif again:
            self._renew(address, place, state)

    def _renew(self, address: bytes, place: Place, state: NudState) -> None:
        """Announce a guest once, as soon as the kernel has confirmed it."""
        if state in _CONFIRMED:
            self._announce_once(address, place)
        elif address not in self._unconfirmed:
            self._unconfirmed.add(address)
            self._to_confirm.append(address)

    # ---- the work that is due

    def work(self) -> float | None:
        """Do what is due; return the seconds until there is more, None if a change comes first."""
        now = self._clock()
        pauses = [
            self._feed(now),
            self._confirm(),
            self._look_for_routes(now),
            self._end_searches(now),
        ]
        return min((pause for pause in pauses if pause is not None), default=None)

    def _feed(self, now: float) -> float | None:
        """Hand over guests to the announcer, as many as it sends soon."""
        _drop_before(now - SETTLING, self._recent)
        for address in [each for each, due in self._settling.items() if due <= now]:
            del self._settling[address]
            self._queue.put(address, *self._known[address])
        while self._announcer.new < self._batch:
            address_or_none = self._queue.take()
            if address_or_none is None:
                break
            self._hand_over(address_or_none, now)
        if self._queue:
            return _FEED_PERIOD
        return min((due - now for due in self._settling.values()), default=None)

    def _hand_over(self, address: bytes, now: float) -> None:
        """Announce a guest, but not within a second of the time before."""
        if address in self._recent:
            self._settling[address] = self._recent[address] + SETTLING
            return
        profile = self._kernel.profile(address, self._known[address].ifindex)
        if profile is not None:
            self._recent[address] = now
            self._announcer.announce([address], profile, transient=True)

    def _confirm(self) -> float | None:
        """Have the kernel look for stale guests, at the announcer's rate."""
        while self._to_confirm:
            address = self._to_confirm[0]
            if address in self._unconfirmed:
                delay = self._pace.delay()
                if delay:
                    return delay
                self._pace.charge()
                self._kernel.confirm(address, self._known[address].ifindex)
            self._to_confirm.popleft()
        return None

    def _end_searches(self, now: float) -> float | None:
        """Remove the entries of guests that were searched in vain, before they fail."""
        while self._searches:
            address, (began, ifindex) = next(iter(self._searches.items()))
            if now < began + _SEARCH_TIME:
                return began + _SEARCH_TIME - now
            del self._searches[address]
            if address not in self._known and not self._kernel.entry(address, ifindex).mac:
                self._kernel.forget(address, ifindex)
        return None

    def _look_for_routes(self, now: float) -> float | None:
        """Announce neighbours to which a route leads by now."""
        if not self._unrouted:
            return None
        if now < self._route_at:
            return self._route_at - now
        self._route_at = now + _ROUTE_PERIOD
        waiting, self._unrouted = self._unrouted, {}
        for address, (ifindex, looks) in waiting.items():
            if not self._kernel.covers(address):
                continue
            if self._kernel.profile(address, ifindex) is None:
                if looks > 1:
                    self._unrouted[address] = ifindex, looks - 1
                continue
            entry = self._kernel.entry(address, ifindex)
            if entry.mac and entry.state.is_valid:
                self._appear(address, Place(ifindex, entry.mac))
        return _ROUTE_PERIOD if self._unrouted else self._feed(now)


def _drop_before(time: float, entries: OrderedDict[bytes, float]) -> None:
    """Remove the first entries, as far as they are not younger than a time."""
    while entries and next(iter(entries.values())) <= time:
        entries.popitem(last=False)
