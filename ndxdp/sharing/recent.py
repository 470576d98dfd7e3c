"""Facts about addresses, remembered for a while in bounded memory. Pure.

Times are seconds of one monotonic clock, addresses have 16 bytes.
"""

from __future__ import annotations

from collections import OrderedDict

from ndxdp.sharing.claim import Claim

UPSTREAM_LIFETIME = 60.0
"""Seconds for which an address that lives on the upstream link is not searched by lookups."""

ABSENT_LIFETIME = 3.0
"""Seconds for which an address that nobody has is not searched by lookups again.

A solicitor gives up after 3 solicitations, 1 s apart (RFC 4861 section 7.2.2).
"""

REJECTED_LIFETIME = 1.0
"""Seconds for which an address whose claim has failed cannot be claimed, except by DAD.

Without this pause, several nodes that have one address would make each other claim the address
again: the question that checks one node's answer is answered by the others.
"""

MOVES = 5
"""Moves within MOVES_WINDOW after which an address still moves; the next one is its last."""

MOVES_WINDOW = 30.0
"""Seconds in which moves are counted, and for which an address is held that moved too often."""

_SIZE = 4096


class Recent:
    """Addresses that something was found out about; after `lifetime` it is no longer relied on.

    At most `size` are remembered; a new one replaces the one that was added first.
    """

    def __init__(self, lifetime: float, size: int = _SIZE) -> None:
        """Remember nothing yet.

        Args:
            lifetime: Seconds for which an address is remembered.
            size: The most addresses.
        """
        self._lifetime, self._size = lifetime, size
        self._until: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def has(self, address: bytes, now: float) -> bool:
        """Return True if an address was added within the lifetime."""
        return self._until.get(address, (now, b""))[0] > now

    def mac_of(self, address: bytes) -> bytes:
        """Return the MAC that an address was added with; empty without one."""
        return self._until.get(address, (0.0, b""))[1]

    def add(self, address: bytes, now: float, mac: bytes = b"") -> None:
        """Remember an address from now on, with the MAC of the node that has it."""
        self._until[address] = now + self._lifetime, mac
        self._until.move_to_end(address)
        if len(self._until) > self._size:
            self._until.popitem(last=False)

    def discard(self, address: bytes) -> None:
        """Forget an address."""
        self._until.pop(address, None)

    def clear(self) -> None:
        """Forget all addresses."""
        self._until.clear()


class Probes:
    """Nodes whose DAD has met no objection, and which may not answer for the address yet.

    A node ignores solicitations for an address until its DAD has ended (RFC 4862 section 5.4.3), so
    for that long the silence of its link says nothing. At most `size` are remembered; a new one
    replaces the one that was added first.
    """

    def __init__(self, size: int = _SIZE) -> None:
        self._size = size
        self._claims: OrderedDict[bytes, Claim] = OrderedDict()

    def __len__(self) -> int:
        return len(self._claims)

    def add(self, address: bytes, claim: Claim) -> None:
        """Remember a claim if it is DAD."""
        if claim.dad is None:
            return
        self._claims[address] = claim
        self._claims.move_to_end(address)
        if len(self._claims) > self._size:
            self._claims.popitem(last=False)

    def rival(self, address: bytes, claim: Claim, now: float) -> Claim | None:
        """Return the DAD of an address by another node, on another link, that has not ended."""
        probe = self._claims.get(address)
        if probe is None or probe.ifindex == claim.ifindex or probe.mac == claim.mac:
            return None
        return probe if probe.waits(now) else None

    def discard(self, address: bytes) -> None:
        """Forget the node that has probed for an address."""
        self._claims.pop(address, None)


class Moves:
    """When addresses moved: one that moves too often is held where it is for a while.

    At most `size` addresses are remembered; a new one replaces the one that moved least recently.
    """

    def __init__(self, size: int = _SIZE) -> None:
        self._size = size
        self._times: OrderedDict[bytes, list[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times)

    def __contains__(self, address: bytes) -> bool:
        return address in self._times

    def add(self, address: bytes, now: float) -> None:
        """Record a move."""
        recent = [each for each in self._times.get(address, ()) if each > now - MOVES_WINDOW]
        self._times[address] = [*recent, now]
        self._times.move_to_end(address)
        if len(self._times) > self._size:
            self._times.popitem(last=False)

    def holds(self, address: bytes, now: float) -> bool:
        """Return True if an address has moved too often, and stays where it is for now."""
        times = self._times.get(address)
        return times is not None and len(times) > MOVES and times[-1] + MOVES_WINDOW > now
