"""When router advertisements are sent on one downstream link. Pure.

Section numbers are those of RFC 4861. Times are seconds of one monotonic clock.

Everything is bounded: what comes too fast is not queued, it joins what is due already. An
advertisement that joins is not lost, because what is due is the router's state at that time. A
solicitation that joins is answered by the multicast advertisement that is due.
"""

from __future__ import annotations

import math

from ndxdp.ndp.address import UNSPECIFIED
from ndxdp.ndp.router_message import RouterSolicitation

_MIN_DELAY = 3.0
"""MIN_DELAY_BETWEEN_RAS (section 10): seconds between multicast advertisements."""

_RELAYED_BURST = 4
"""Advertisements of one router that are relayed at once, although less than _MIN_DELAY apart: a
router may distribute its options over several (6.2.3), and withdraws a prefix at any time."""

_MAX_DELAY = 0.5
"""MAX_RA_DELAY_TIME (section 10): seconds that an answer is delayed at most."""

_ANSWER_INTERVAL = 0.1
_ANSWER_BURST = 20
"""Seconds between answers to single solicitors, and how many of them at once."""


class RelayPort:
    """The advertisements that are due on one link.

    Attributes:
        waiting: When each solicitor gets its answer, by its address.
    """

    def __init__(self) -> None:
        """Begin with nothing due."""
        self.waiting: dict[bytes, tuple[float, RouterSolicitation]] = {}
        self._spent: dict[bytes, float] = {}
        self._deferred: dict[bytes, float] = {}
        self._multicast_due = math.inf
        self._multicast_at = -math.inf
        self._answers_spent = -math.inf

    def admit(self, now: float, router: bytes) -> bool:
        """Return True if a router's advertisement may be relayed now; else it is due later."""
        spent = max(self._spent.get(router, now), now)
        credit = (_RELAYED_BURST - 1) * _MIN_DELAY
        if spent - now > credit or router in self._deferred:
            self._deferred.setdefault(router, spent - credit)
            return False
        self._charge(now, router)
        return True

    def announce(self, now: float, chance: float) -> None:
        """Send the advertisements of all routers soon, by multicast (6.2.4, 6.2.6)."""
        due = max(now + chance * _MAX_DELAY, self._multicast_at + _MIN_DELAY)
        self._multicast_due = min(self._multicast_due, due)

    def ask(self, now: float, solicitation: RouterSolicitation, chance: float) -> bool:
        """Take a solicitation; return False if it only joins an answer that is due already."""
        source = solicitation.source
        if source in self.waiting:
            return False
        spent = max(self._answers_spent, now)
        if source != UNSPECIFIED and spent - now <= (_ANSWER_BURST - 1) * _ANSWER_INTERVAL:
            self._answers_spent = spent + _ANSWER_INTERVAL
            self.waiting[source] = (now + chance * _MAX_DELAY, solicitation)
            return True
        joins = self._multicast_due < math.inf
        self.announce(now, chance)
        return not joins

    def due_answers(self, now: float) -> list[RouterSolicitation]:
        """Return the solicitations whose answer is due, and take them as answered."""
        due = [(when, asked) for when, asked in self.waiting.values() if when <= now]
        for _, asked in due:
            del self.waiting[asked.source]
        return [asked for _, asked in due]

    def multicast_is_due(self, now: float) -> bool:
        """Return True if all routers' advertisements are due, and take them as sent."""
        if self._multicast_due > now:
            return False
        self._multicast_due, self._multicast_at = math.inf, now
        return True

    def due_routers(self, now: float) -> list[bytes]:
        """Return the routers whose advertisement is due, and take it as relayed."""
        due = [router for router, when in self._deferred.items() if when <= now]
        for router in due:
            self._charge(now, router)
        return due

    def forget(self, router: bytes) -> None:
        """Forget a router."""
        self._spent.pop(router, None)
        self._deferred.pop(router, None)

    def next_due(self) -> float:
        """Return when the next advertisement is due; infinity if none is."""
        answers = min((when for when, _ in self.waiting.values()), default=math.inf)
        return min(answers, self._multicast_due, *self._deferred.values(), math.inf)

    def _charge(self, now: float, router: bytes) -> None:
        self._spent[router] = max(self._spent.get(router, now), now) + _MIN_DELAY
        self._deferred.pop(router, None)
        self._multicast_at = now
