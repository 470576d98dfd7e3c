"""The addresses that a share may learn. Pure. Addresses have 16 bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ndxdp.ndp.address import LOOPBACK, UNSPECIFIED, is_link_local, is_multicast
from ndxdp.rules.prefix import Prefix

_BITS = 128
_NO_ANYCAST = 127  # the length from which a prefix has no Subnet-Router anycast address (RFC 6164)


class Scope:
    """The shared prefixes, and the addresses inside them that are never learned.

    Attributes:
        own: The addresses of this host.
    """

    def __init__(self) -> None:
        """Start without prefixes: then no address is inside."""
        self.own: frozenset[bytes] = frozenset()
        self._routers: frozenset[bytes] = frozenset()
        self._prefixes: list[tuple[int, int]] = []
        self._anycast: frozenset[bytes] = frozenset()

    def set_prefixes(self, prefixes: Collection[Prefix]) -> None:
        """Take the shared prefixes."""
        self._prefixes = [
            (_BITS - each.length, int.from_bytes(each.address, "big") >> _BITS - each.length)
            for each in prefixes
        ]
        self._anycast = frozenset(each.address for each in prefixes if each.length < _NO_ANYCAST)

    def set_reserved(self, own: Mapping[int, frozenset[bytes]], routers: frozenset[bytes]) -> None:
        """Take this host's addresses, by interface, and those of the routers."""
        self.own, self._routers = frozenset().union(*own.values()), routers

    def inside(self, address: bytes) -> bool:
        """Return True if an address is inside a shared prefix."""
        number = int.from_bytes(address, "big")
        return any(number >> shift == prefix for shift, prefix in self._prefixes)

    def is_router(self, address: bytes) -> bool:
        """Return True for a router's address, and for the Subnet-Router anycast address.

        All routers of a subnet have the latter (RFC 4291 section 2.6.1).
        """
        return address in self._routers or address in self._anycast

    def admits(self, address: bytes) -> bool:
        """Return True if an address may be learned."""
        return self.inside(address) and address not in self.own and not self.is_router(address)


def is_global_unicast(address: bytes) -> bool:
    """Return True unless an address is link-local, multicast, :: or ::1."""
    return not (
        is_link_local(address) or is_multicast(address) or address in (UNSPECIFIED, LOOPBACK)
    )
