"""Room in the kernel's neighbour table, and solicitations that wait for room.

All network namespaces share one table of IPv6 neighbours, with 1024 entries by default. Once the
table is full, each attempt to add an entry takes the kernel up to a millisecond
(neigh_forced_gc()), and may cost another neighbour its entry. So after a refusal the kernel is not
asked for a moment.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from ndxdp.ndp.decision import Match
from ndxdp.ndp.message import Solicitation
from ndxdp.netlink import neighbour_table

log = logging.getLogger(__name__)

_PAUSE_MIN, _PAUSE_MAX = 0.1, 1.0  # seconds
_READ_EVERY = 1.0  # seconds between two readings of the table's size
_WARN_EVERY = 3600.0  # seconds between two warnings

WAITING_MAX = 1024
"""The most targets that wait for room."""

KNOWN_MAX = 16384
"""The most targets that are remembered as found."""

_WAIT = 5.0
"""Seconds for which a target waits. A router solicits three times, one second apart."""


class NeighbourRoom:
    """Room in the kernel's table for another entry; logs a warning if there is none."""

    def __init__(self, interface: str) -> None:
        """Begin with the assumption that there is room; interface: for the warnings."""
        self._interface = interface
        self._pause, self._until = _PAUSE_MIN, 0.0
        self._looked, self._warned = -_READ_EVERY, -_WARN_EVERY
        self._is_tight = False

    @property
    def pause(self) -> float:
        """Seconds until the kernel may be asked again; 0 for now."""
        return max(self._until - time.monotonic(), 0.0)

    def is_tight(self, guests: int) -> bool:
        """Return True if the table is nearly full, and warn of it; guests: as for refused()."""
        now = time.monotonic()
        if now - self._looked >= _READ_EVERY:
            self._looked = now
            table = neighbour_table.read()
            self._is_tight = table is not None and table.is_nearly_full
            if self._is_tight:
                self._warn(guests)
        return self._is_tight

    def refused(self, guests: int) -> None:
        """Note that the kernel had no room, and warn.

        Args:
            guests: How many neighbours the daemon has found on behalf of the interface.
        """
        self._until = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, _PAUSE_MAX)
        self._is_tight = True
        self._warn(guests)

    def granted(self) -> None:
        """Note that the kernel had room."""
        self._pause = _PAUSE_MIN

    def _warn(self, guests: int) -> None:
        now = time.monotonic()
        if now - self._warned < _WARN_EVERY:
            return
        self._warned = now
        table = neighbour_table.read()
        needed = max(guests, table.entries if table else 0, 1)
        log.warning(
            "%s: the kernel's table of IPv6 neighbours is %s, and ndxdp has found %d neighbours"
            " behind this host: it does not answer for neighbours without an entry (sysctl -w %s)",
            self._interface,
            table.fill if table else "full",
            guests,
            " ".join(neighbour_table.settings_for(needed)),
        )


@dataclass(slots=True)
class Waiting:
    """A target that waits for room.

    Attributes:
        solicitation: The last solicitation for it.
        rule: The rule that matches it.
        until: The time after which that solicitation is not answered, in s of CLOCK_MONOTONIC.
        was_found: The target was found before.
        asked: How many solicitations asked for it.
        since: The time of the last one, in s of CLOCK_MONOTONIC.
    """

    solicitation: Solicitation
    rule: Match
    until: float
    was_found: bool
    asked: int
    since: float


class WaitingTargets:
    """The targets that wait for room, and those that were found before, which go first."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, Waiting] = {}
        self._found: dict[bytes, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def guests(self) -> int:
        """How many targets were found, at most KNOWN_MAX."""
        return len(self._found)

    def was_found(self, target: bytes) -> bool:
        """Return True if the target was found before."""
        return target in self._found

    def found(self, target: bytes) -> None:
        """Remember that a target was found; the oldest ones are forgotten."""
        self._waiting.pop(target, None)
        self._found.pop(target, None)
        self._found[target] = None
        if len(self._found) > KNOWN_MAX:
            del self._found[next(iter(self._found))]

    def lost(self, target: bytes) -> None:
        """Forget a target that did not answer."""
        self._found.pop(target, None)

    def add(self, ns: Solicitation, rule: Match, until: float) -> None:
        """Let a target wait; one that was never found waits only if there is a place."""
        before = self._waiting.pop(ns.target, None)
        was_found = ns.target in self._found
        if before is None and len(self._waiting) >= WAITING_MAX:
            if not was_found:
                return
            del self._waiting[next(iter(self._waiting))]
        asked = before.asked + 1 if before else 1
        now = time.monotonic()
        self._waiting[ns.target] = Waiting(ns, rule, until, was_found, asked, now)

    def take(self) -> list[Waiting]:
        """Remove and return all: first those that were found before, then those asked for most."""
        oldest = time.monotonic() - _WAIT
        taken = [each for each in self._waiting.values() if each.since >= oldest]
        self._waiting.clear()
        taken.sort(key=lambda each: (each.was_found, each.asked), reverse=True)
        return taken

    def wait_again(self, several: list[Waiting]) -> None:
        """Let targets that take() returned wait again."""
        for each in several:
            self._waiting.setdefault(each.solicitation.target, each)
