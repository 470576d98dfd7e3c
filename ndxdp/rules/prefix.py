"""IPv6 prefixes, patterns of addresses, and their texts. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ndxdp.errors import UsageError
from ndxdp.ndp.address import LOOPBACK, UNSPECIFIED
from ndxdp.rules.address import address_text, parse_address


class Prefix(NamedTuple):
    """An IPv6 prefix: 16 bytes in network order with the host bits zero, and 0 to 128 bits."""

    address: bytes
    length: int

    def __str__(self) -> str:
        text = address_text(self.address)
        return text if self.length == 128 else f"{text}/{self.length}"

    @classmethod
    def around(cls, address: bytes, length: int) -> Prefix:
        """Return the prefix of `length` bits that contains an address (16 bytes)."""
        return cls(mask(address, length), length)

    def covers(self, other: Prefix) -> bool:
        """Return True if the prefix contains all of another prefix, or is the same."""
        return other.length >= self.length and mask(other.address, self.length) == self.address


@dataclass(frozen=True, slots=True)
class AddressPattern:
    """The addresses that share their first bits, or their last bits, with `address`.

    Attributes:
        address: 16 bytes.
        length: The number of first bits, 0 to 128; or the negative number of last bits, -1 to -127.
    """

    address: bytes
    length: int

    def __str__(self) -> str:
        text = address_text(self.address)
        return text if self.length == 128 else f"{text}/{self.length}"

    def matches(self, address: bytes) -> bool:
        """Return True if an address (16 bytes) matches the pattern."""
        return self._bits(address) == self._bits(self.address)

    def covers(self, other: AddressPattern) -> bool:
        """Return True if every address that matches `other` matches this pattern."""
        return self._mask & other._mask == self._mask and self.matches(other.address)

    def cut_to(self, length: int) -> AddressPattern | None:
        """Return the pattern of a length that covers this pattern; None if there is none."""
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
    """Return an address (16 bytes) with all but the first `length` bits cleared."""
    bits = 128 - length
    return (int.from_bytes(address, "big") >> bits << bits).to_bytes(16, "big")


_PART = 16  # bits: a network gets a /80 of the on-link /64


def free_part(
    prefix: Prefix, addresses: Iterable[bytes], subnets: Iterable[Prefix]
) -> Prefix | None:
    """Return the first unused part of an on-link prefix; None if all parts are in use.

    Part 0 is left out, because routers have their addresses there.

    Args:
        prefix: The on-link prefix.
        addresses: Addresses (16 bytes) in use.
        subnets: Prefixes in use; those that contain the on-link prefix are ignored.
    """
    length = min(prefix.length + _PART, 126)
    used = {Prefix.around(address, length) for address in addresses}
    used |= {
        Prefix.around(each.address, min(length, each.length))
        for each in subnets
        if each.length > prefix.length
    }
    lengths = {each.length for each in used}
    first = int.from_bytes(prefix.address, "big")
    for number in range(1, 1 << max(length - prefix.length, 0)):
        part = (first + (number << 128 - length)).to_bytes(16, "big")
        if not any(Prefix.around(part, each) in used for each in lengths):
            return Prefix(part, length)
    return None


def parse_prefix(text: str) -> Prefix:
    """Parse a prefix such as `2001:db8::/64`; an address without a length is a /128.

    Raises:
        UsageError: The text has host bits, is IPv4, has a length other than a number from 0 to
            128, or is no prefix at all.
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
    """Parse a prefix of targets, which are neither multicast nor :: nor ::1 (RFC 4861 7.1.1).

    Raises:
        UsageError: The text is no prefix, or no target can be in the prefix.
    """
    prefix = parse_prefix(text)
    if prefix.length >= 8 and prefix.address[0] == 0xFF:
        raise UsageError(f"{prefix} is multicast: no router solicits it", "name unicast addresses")
    if prefix.length == 128 and prefix.address in (UNSPECIFIED, LOOPBACK):
        raise UsageError(f"no router solicits {prefix}", "name addresses behind this host")
    return prefix


def parse_pattern(text: str) -> AddressPattern:
    """Parse a pattern of addresses: `2001:db8::1`, `2001:db8::/64`, or `::1/-64`.

    `::1/-64` matches every address whose last 64 bits are those of ::1.

    Raises:
        UsageError: The text is no such pattern.
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
