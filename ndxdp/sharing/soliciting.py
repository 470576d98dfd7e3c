"""When this host solicits the routers of the upstream link. Pure.

Section numbers are those of RFC 4861 unless another RFC is named. Times are seconds of one
monotonic clock.
"""

from __future__ import annotations

import math

_SOLICITATIONS = 3
_INTERVAL = 4.0
"""MAX_RTR_SOLICITATIONS and RTR_SOLICITATION_INTERVAL (section 10)."""

_INTERVAL_MAX = 3600.0
"""MRT of RFC 7559 section 2: until a router answers, the interval is doubled up to here."""

_ASKED_INTERVAL = 60.0
"""Seconds between solicitations that hosts downstream cause."""


class Soliciting:
    """The solicitations of one host on one link.

    Attributes:
        due: When the next solicitation is to be sent; infinity while none is.
    """

    def __init__(self) -> None:
        """Begin with nothing due and nothing sent."""
        self.due = math.inf
        self._sent_at = -math.inf
        self._sent = 0

    def start(self, now: float) -> None:
        """Solicit at once, three times, and then ever more rarely (6.3.7, RFC 7559)."""
        self._sent = 0
        self.due = max(now, self._sent_at + _INTERVAL)

    def stop(self) -> None:
        """Solicit no more: a router has answered."""
        self.due = math.inf

    def hasten(self, now: float) -> None:
        """Solicit earlier, because a host downstream asks for a router."""
        self.due = min(self.due, max(now, self._sent_at + _ASKED_INTERVAL))

    def sent(self, now: float, chance: float) -> None:
        """Take a solicitation as sent.

        Args:
            now: The time.
            chance: A random number from 0 to below 1: intervals vary by 10 % (RFC 7559).
        """
        self._sent += 1
        self._sent_at = now
        doubled = 2.0 ** min(max(0, self._sent - _SOLICITATIONS + 1), 10)
        interval = min(_INTERVAL * doubled, _INTERVAL_MAX) if doubled > 1 else _INTERVAL
        self.due = now + interval * (0.9 + 0.2 * chance if doubled > 1 else 1)
