"""Bounds on the handover of addresses from one host, and one name, to another. Pure."""

from __future__ import annotations

from typing import TypeVar

from ndxdp.rules.prefix import Prefix

_K = TypeVar("_K")

_WINDOW = 100
"""Addresses that a host has given up for others, and that no host has taken yet.

If the others do not take them, only so many are without an answer, and not all.
"""


class Window:
    """The addresses that this host has given up for others, and that no host has taken yet."""

    def __init__(self) -> None:
        """Wait for nothing."""
        self._until: dict[str, float] = {}  # in the order of time

    def admits(self, name: str) -> bool:
        """Return True if an address may be given up now."""
        return name in self._until or len(self._until) < _WINDOW

    def add(self, name: str, until: float) -> None:
        """Wait for another host to take an address, until a time; times do not decrease."""
        self._until.pop(name, None)
        self._until[name] = until

    def discard(self, name: str) -> None:
        """Note that another host has taken an address."""
        self._until.pop(name, None)

    def expire(self, now: float) -> None:
        """Wait no longer for addresses whose time has passed."""
        for name in _expired(self._until, now):
            del self._until[name]

    @property
    def opens(self) -> float | None:
        """When a full window has room again at the latest; None if it has room."""
        return next(iter(self._until.values())) if len(self._until) >= _WINDOW else None


class Reservations:
    """Prefixes that a name has lost, and that no other name gets for a while.

    The changes of holders may be known later than those of the addresses: another host may hold the
    former name, and this host does not know it yet. A holder that is known keeps the prefix anyway.
    """

    def __init__(self) -> None:
        """Reserve nothing."""
        self._until: dict[Prefix, float] = {}  # in the order of time
        self._former: dict[Prefix, tuple[str, int]] = {}

    def add(self, prefix: Prefix, name: str, changed: int, until: float) -> None:
        """Reserve a prefix for the name that had it.

        Args:
            prefix: The prefix.
            name: The name.
            changed: The revision from which on no host acquires the prefix by that name.
            until: When the changes of holders up to that revision are known in any case; times do
                not decrease.
        """
        self._until.pop(prefix, None)
        self._until[prefix], self._former[prefix] = until, (name, changed)

    def against(self, prefix: Prefix, name: str, watched: int) -> float:
        """Return until when a prefix is reserved for another name than this; 0 if it is not.

        Args:
            prefix: The prefix.
            name: The name.
            watched: The revision up to which all changes of holders are known.
        """
        former, changed = self._former.get(prefix, (name, 0))
        return 0.0 if former == name or watched >= changed else self._until[prefix]

    def expire(self, now: float) -> None:
        """Forget the reservations whose time has passed."""
        for prefix in _expired(self._until, now):
            del self._until[prefix], self._former[prefix]


def _expired(until: dict[_K, float], now: float) -> list[_K]:
    """Return the first keys whose time has passed."""
    found = []
    for key, when in until.items():
        if now < when:
            break
        found.append(key)
    return found
