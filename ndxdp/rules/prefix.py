"""Prefixes and patterns of addresses. Pure."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import NamedTuple

from ndxdp.errors import UsageError
from ndxdp.ndp.address import LOOPBACK, UNSPECIFIED
from ndxdp.rules.address import parse_address


class Prefix(NamedTuple):
    """An IPv6 prefix: 16 bytes in network order with the host bits zero, and 0 to 128 bits."""

    address: bytes
    length: int

    def __str__(self) -> str:
        text = socket.inet_ntop(socket.AF_INET6, self.address)
        return text if self.length == 128 else f"{text}/{self.length}"

    @classmethod
    def around(cls, address: bytes, length: int) -> Prefix:
        """The prefix of `length` bits that an address (16 bytes) is in."""
        return cls(mask(address, length), length)


@dataclass(frozen=True, slots=True)
class AddressPattern:
    """Addresses that begin with the first bits of `address` (16 bytes), or end in its last bits.

    length: 0 to 128 bits from the beginning, or -1 to -127: as many bits from the end.
    """

    address: bytes
    length: int

    def __str__(self) -> str:
        text = socket.inet_ntop(socket.AF_INET6, self.address)
        return text if self.length == 128 else f"{text}/{self.length}"

    def matches(self, address: bytes) -> bool:
        """Return True if the pattern has this address (16 bytes)."""
        return self._bits(address) == self._bits(self.address)

    def covers(self, other: AddressPattern) -> bool:
        """Return True if this pattern has every address that `other` has."""
        return self._mask & other._mask == self._mask and self.matches(other.address)

    def cut_to(self, length: int) -> AddressPattern | None:
        """Return the pattern of this length that covers this one; None if none does."""
        bits = AddressPattern(self.address, length)._bits(self.address)
        cut = AddressPattern(bits.to_bytes(16, "big"), length)
        return cut if cut.covers(self) else None

    @property
    def _mask(self) -> int:
        if self.length < 0:
            return (1 << -self.length) - 1
        return (1 << 128) - (1 << 128 - self.length)

    def _bits(self, address: bytes) -> int:
        return int.from_bytes(address, "big") & self._mask


def mask(address: bytes, length: int) -> bytes:
    """The address with all but the first `length` bits cleared."""
    bits = 128 - length
    return (int.from_bytes(address, "big") >> bits << bits).to_bytes(16, "big")


def parse_prefix(text: str) -> Prefix:
    """`2001:db8::/64`, or an address alone, which is its /128.

    UsageError for host bits, IPv4, a mask that is no number from 0 to 128, and anything else.
    """
    head, slash, tail = text.partition("/")
    if not slash:
        return Prefix(parse_address(text), 128)
    address = parse_address(head)
    if not (tail.isascii() and tail.isdecimal() and len(tail) <= 3 and int(tail) <= 128):
        raise UsageError(
            f"'{text}' has no prefix length from 0 to 128", "write it as in 2001:db8::/64"
        )
    prefix = Prefix.around(address, int(tail))
    if prefix.address != address:
        raise UsageError(
            f"'{text}' has bits set behind the first {tail}",
            f"{prefix} is the prefix, {head} the address alone",
        )
    return prefix


def parse_target(text: str) -> Prefix:
    """A prefix that solicitations can be for; no target is multicast, :: or ::1 (RFC 4861)."""
    prefix = parse_prefix(text)
    if prefix.length >= 8 and prefix.address[0] == 0xFF:
        raise UsageError(f"{prefix} is multicast: nobody solicits it", "name unicast addresses")
    if prefix.length == 128 and prefix.address in (UNSPECIFIED, LOOPBACK):
        raise UsageError(f"nobody solicits {prefix}", "name addresses behind this host")
    return prefix


def parse_pattern(text: str) -> AddressPattern:
    """Read a pattern of own addresses: `2001:db8::1`, `2001:db8::/64`, or `::1/-64`.

    The last one is every address whose last 64 bits are those of ::1. UsageError for anything
    else.
    """
    head, _, tail = text.partition("/")
    if not tail.startswith("-"):
        return AddressPattern(*parse_target(text))
    address, digits = parse_address(head), tail[1:]
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 3):
        digits = "0"
    length = int(digits)
    if not 1 <= length <= 128:
        raise UsageError(
            f"'{text}' has no suffix length from -1 to -128",
            "write it as in ::1/-64, which is every address whose last 64 bits are those of ::1",
        )
    if length == 128:
        return AddressPattern(*parse_target(head))
    if int.from_bytes(address, "big") >> length:
        last = (int.from_bytes(address, "big") & (1 << length) - 1).to_bytes(16, "big")
        raise UsageError(
            f"'{text}' has bits set before the last {length}",
            f"{AddressPattern(last, -length)} is the suffix, {head} the address alone",
        )
    return AddressPattern(address, -length)
