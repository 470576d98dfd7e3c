"""Hosts that did not take an address in their turn. Pure.

A host may be alive and yet not able to take an address: it refuses the value, or may not write to
etcd. Without this memory, an address that is to fail back to such a host would go back and forth.
"""

from __future__ import annotations

from typing import NamedTuple

SECONDS = 600.0
"""Seconds in which a host that did not take an address in its turn does not get it back."""


class Passed(NamedTuple):
    """The hosts that did not take an address that this host has now.

    Attributes:
        until: When they may get it back.
        hosts: The hosts, and since when they were candidates then.
        move: The revision of the move that had no effect; 0 for none.
    """

    until: float
    hosts: dict[str, float]
    move: int


_NONE = Passed(0.0, {}, 0)


class PassedOver:
    """The hosts that were passed over, by the name of the address."""

    def __init__(self) -> None:
        """Remember nothing."""
        self._passed: dict[str, Passed] = {}

    def add(self, name: str, passed: Passed) -> None:
        """Remember the hosts that did not take an address."""
        self._passed[name] = passed

    def discard(self, name: str) -> None:
        """Forget an address, which this host does not hold any more."""
        self._passed.pop(name, None)

    def get(self, name: str, now: float) -> Passed:
        """Return the hosts that do not get an address back now."""
        passed = self._passed.get(name, _NONE)
        return passed if now < passed.until else _NONE
