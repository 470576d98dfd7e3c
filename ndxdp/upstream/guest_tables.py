"""The kernel and the announcer, as the logic of guests (upstream/guests.py) needs them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from ndxdp.ndp.profile import Profile
from ndxdp.netlink.fib import Neighbour


class Place(NamedTuple):
    """The place of a guest; mac: 6 bytes."""

    ifindex: int
    mac: bytes


class Announcing(Protocol):
    """The part of an Announcer that announces guests."""

    @property
    def new(self) -> int:
        """How many addresses wait for the first announcement of a series."""

    def announce(
        self, addresses: Iterable[bytes], profile: Profile, *, transient: bool = False
    ) -> None:
        """Announce addresses that have appeared."""

    def announce_once(self, addresses: Iterable[bytes], profile: Profile) -> None:
        """Announce addresses that are still there."""

    def forget(self, addresses: Iterable[bytes]) -> None:
        """Stop announcing addresses."""


class Kernel(Protocol):
    """The kernel's tables and the rules, as far as they concern guests."""

    def covers(self, address: bytes) -> bool:
        """Return True if a `neighbour` rule answers for an address, on whichever link it lives."""

    def profile(self, address: bytes, ifindex: int) -> Profile | None:
        """Return how an address is answered for; None if no route leads to it by an interface."""

    def entry(self, address: bytes, ifindex: int) -> Neighbour:
        """Return the kernel's neighbour entry."""

    def confirm(self, address: bytes, ifindex: int) -> None:
        """Have the kernel find out whether a neighbour is there, by its own solicitations."""

    def forget(self, address: bytes, ifindex: int) -> None:
        """Remove a neighbour's entry."""

    def search(self, address: bytes, ifindex: int) -> None:
        """Have the kernel forget a neighbour, and solicit it."""
