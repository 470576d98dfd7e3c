"""Which addresses a share may learn. Pure. Addresses have 16 bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ndxdp.ndp.address import LOOPBACK, UNSPECIFIED, is_link_local, is_multicast
from ndxdp.rules.prefix import Prefix

_BITS = 128


class Scope:
    """The shared prefixes, and the addresses inside them that are never learned.

    Attributes:
        own: The addresses of this host.
        routers: The addresses of routers on the upstream link.
    """

    def __init__(self) -> None:
        """Start without prefixes: then no address is inside."""
        self.own: frozenset[bytes] = frozenset()
        self.routers: frozenset[bytes] = frozenset()
        self._prefixes: list[tuple[int, int]] = []

    def set_prefixes(self, prefixes: Collection[Prefix]) -> None:
        """Take the shared prefixes."""
        self._prefixes = [
            (_BITS - each.length, int.from_bytes(each.address, "big") >> _BITS - each.length)
            for each in prefixes
        ]

    def set_reserved(self, own: Mapping[int, frozenset[bytes]], routers: frozenset[bytes]) -> None:
        """Take this host's addresses, by interface, and those of the routers."""
        self.own, self.routers = frozenset().union(*own.values()), routers

    def inside(self, address: bytes) -> bool:
        """Return True if an address is inside a shared prefix."""
        number = int.from_bytes(address, "big")
        return any(number >> shift == prefix for shift, prefix in self._prefixes)

    def admits(self, address: bytes) -> bool:
        """Return True if an address may be learned."""
        return (
            is_global_unicast(address)
            and self.inside(address)
            and address not in self.own
            and address not in self.routers
        )


def is_global_unicast(address: bytes) -> bool:
    """Return True unless an address is link-local, multicast, :: or ::1."""
    return not (
        is_link_local(address) or is_multicast(address) or address in (UNSPECIFIED, LOOPBACK)
    )
