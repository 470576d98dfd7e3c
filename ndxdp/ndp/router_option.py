"""Options of router advertisements: identity, lifetimes and age. Pure.

An option is bytes from its type on; its second byte is its length in units of 8 bytes (RFC 4861
section 4.6). Lifetimes are seconds.

    type  option                                          lifetime field
       1  source link-layer address, RFC 4861 4.6.1       -
       3  prefix information, RFC 4861 4.6.2              32 bits at 4 (valid), at 8 (preferred)
       5  MTU, RFC 4861 4.6.4                             -
      24  route information, RFC 4191 2.3                 32 bits at 4
      25  recursive DNS servers, RFC 8106 5.1             32 bits at 4
      31  DNS search list, RFC 8106 5.2                   32 bits at 4
      38  PREF64, RFC 8781 4                              13 bits at 2, in units of 8 s
"""

from __future__ import annotations

from typing import NamedTuple

from ndxdp.ndp.frame import NONCE, SLLAO

PREFIX_INFORMATION, MTU = 3, 5
CGA, RSA_SIGNATURE, TIMESTAMP = 11, 12, 13
ROUTE_INFORMATION, RDNSS, DNSSL, PREF64 = 24, 25, 31, 38
"""Types of options."""

SIGNED = frozenset((CGA, RSA_SIGNATURE, TIMESTAMP, NONCE))
"""Types of the options of SEND (RFC 3971 section 5), which hold only in the message that the
router itself has signed."""

INFINITY = 0xFFFFFFFF
"""A lifetime without end (RFC 4861 section 4.6.2)."""

ON_LINK, AUTONOMOUS = 0x80, 0x40
"""Flags L and A of a prefix information option."""

_LIFETIME = slice(4, 8)
_PREFERRED = slice(8, 12)
_SCALED = slice(2, 4)
_SCALE = 8  # seconds of one unit of PREF64's lifetime, whose field has 3 other bits


class PrefixInformation(NamedTuple):
    """A prefix information option.

    Attributes:
        address: The prefix's 16 bytes, with the host bits as they came.
        length: The prefix's bits.
        flags: The byte with the flags L and A.
        valid: The valid lifetime; INFINITY for no end.
        preferred: The preferred lifetime; INFINITY for no end.
    """

    address: bytes
    length: int
    flags: int
    valid: int
    preferred: int

    @property
    def on_link(self) -> bool:
        """True for the L flag."""
        return bool(self.flags & ON_LINK)


def split_options(data: bytes) -> tuple[bytes, ...] | None:
    """Split the options of a message; None if a length is 0 or exceeds the message (6.1.1)."""
    options = []
    at = 0
    while at < len(data):
        units = data[at + 1] if at + 1 < len(data) else 0
        end = at + units * 8
        if not units or end > len(data):
            return None
        options.append(data[at:end])
        at = end
    return tuple(options)


def is_well_formed(option: bytes) -> bool:
    """Return True if an option has a length that its type permits; other types have any length."""
    kind, units = option[0], option[1]
    if kind == PREFIX_INFORMATION:
        return units == 4 and option[2] <= 128
    if kind == ROUTE_INFORMATION:
        return units <= 3 and option[2] <= 64 * (units - 1)
    if kind == RDNSS:
        return units >= 3 and units % 2 == 1
    if kind == DNSSL:
        return units >= 2
    if kind == PREF64:
        return units == 2
    return units == 1 or kind not in (SLLAO, MTU)


def option_key(option: bytes) -> bytes:
    """Return what stays the same when a router sends a well-formed option with other lifetimes.

    That is the option without lifetimes and flags. An option of another type is its own key.
    """
    kind = option[0]
    if kind == PREFIX_INFORMATION:
        return option[:3] + _masked(option[16:32], option[2])
    if kind == ROUTE_INFORMATION:
        return bytes((kind, option[2])) + _masked(option[8:].ljust(16, b"\0"), option[2])
    if kind in (RDNSS, DNSSL):
        return option[:2] + option[8:]
    if kind == PREF64:
        return bytes((kind, option[3] & _SCALE - 1)) + option[4:]
    if kind in (SLLAO, MTU):
        return option[:1]
    return option


def prefix_information(option: bytes) -> PrefixInformation:
    """Decode a well-formed prefix information option."""
    return PrefixInformation(
        address=option[16:32],
        length=option[2],
        flags=option[3],
        valid=int.from_bytes(option[_LIFETIME], "big"),
        preferred=int.from_bytes(option[_PREFERRED], "big"),
    )


def prefix_option(prefix: PrefixInformation) -> bytes:
    """Build a prefix information option (4.6.2): 32 bytes."""
    return b"".join(
        (
            bytes((PREFIX_INFORMATION, 4, prefix.length, prefix.flags)),
            prefix.valid.to_bytes(4, "big"),
            prefix.preferred.to_bytes(4, "big"),
            bytes(4),
            prefix.address,
        )
    )


def mtu_of(option: bytes) -> int:
    """Return the MTU in a well-formed MTU option."""
    return int.from_bytes(option[4:8], "big")


def mtu_option(mtu: int) -> bytes:
    """Build an MTU option (4.6.4): 8 bytes."""
    return bytes((MTU, 1, 0, 0)) + mtu.to_bytes(4, "big")


def lladdr_option(mac: bytes) -> bytes:
    """Build the option with the sender's MAC (4.6.1): 8 bytes."""
    return bytes((SLLAO, 1)) + mac


def lifetime_of(option: bytes) -> int | None:
    """Return the lifetime of a well-formed option; None if its type has none.

    The lifetime of a prefix is its valid lifetime.
    """
    kind = option[0]
    if kind in (PREFIX_INFORMATION, ROUTE_INFORMATION, RDNSS, DNSSL):
        return int.from_bytes(option[_LIFETIME], "big")
    if kind == PREF64:
        return int.from_bytes(option[_SCALED], "big") & -_SCALE
    return None


def aged(option: bytes, age: float) -> bytes | None:
    """Return a well-formed option with its lifetimes reduced by its age in seconds.

    An infinite lifetime stays infinite, and 0 stays 0. Return None for an option whose lifetime has
    ended since.
    """
    lifetime = lifetime_of(option)
    if not lifetime or age <= 0:
        return option
    left = _left(lifetime, age)
    if option[0] == PREF64:
        scaled = int(max(0, lifetime - age)) & -_SCALE
        rest = (scaled | option[3] & _SCALE - 1).to_bytes(2, "big")
        return option[:2] + rest + option[4:] if scaled else None
    if not left:
        return None
    if option[0] == PREFIX_INFORMATION:
        preferred = _left(int.from_bytes(option[_PREFERRED], "big"), age)
        return option[:4] + left.to_bytes(4, "big") + preferred.to_bytes(4, "big") + option[12:]
    return option[:4] + left.to_bytes(4, "big") + option[8:]


def _left(lifetime: int, age: float) -> int:
    return lifetime if lifetime == INFINITY else int(max(0, lifetime - age))


def _masked(address: bytes, length: int) -> bytes:
    bits = 128 - length
    return (int.from_bytes(address, "big") >> bits << bits).to_bytes(16, "big")
