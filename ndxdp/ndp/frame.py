"""The layout of a Neighbor Discovery frame. Pure."""

from __future__ import annotations

import struct

FRAME_MAX = 1514
"""Bytes. A longer frame is no solicitation that any stack sends (NDP_FRAME_MAX)."""

HEADERS_LEN = 58  # Ethernet, IPv6 and ICMPv6 headers

OPTIONS_AT = 78

NS_LEN = 24  # ICMPv6 length of a solicitation without options

NA_LEN = 32  # ... and of our advertisement, with its TLLAO

OTHER_VLAN_LEN = 54
"""Bytes that are left of a solicitation with the tag of another VLAN beside it, whose receiver sees
no tags. No other frame that is_solicitation() is as short."""

ETHERTYPE_IPV6 = b"\x86\xdd"

_VLAN_TYPES = (b"\x81\x00", b"\x88\xa8")  # 802.1Q, 802.1ad

VLAN_ID = 0x0FFF

ICMPV6 = 58

TYPE_NS = 135

TYPE_NA = 136

SLLAO = 1

TLLAO = 2

ROUTER, SOLICITED, OVERRIDE = 0x80, 0x40, 0x20


def is_solicitation(frame: bytes) -> bool:
    """Untagged IPv6 that is ICMPv6 type 135, with the ICMPv6 header inside the frame.

    Anything else, an extension header in the way included, is not our business and is not counted.
    """
    return (
        len(frame) >= HEADERS_LEN
        and frame[12:14] == ETHERTYPE_IPV6
        and frame[20] == ICMPV6
        and frame[54] == TYPE_NS
        and frame[14] >> 4 == 6
    )


def untagged(frame: bytes) -> bytes:
    """Take the VLAN tag off a frame that has one behind its MACs; return others as they are."""
    return frame[:12] + frame[16:] if frame[12:14] in _VLAN_TYPES else frame


def icmpv6_frame(
    eth_source: bytes,
    eth_destination: bytes,
    source: bytes,
    destination: bytes,
    icmp_type: int,
    body: bytes,
) -> bytes:
    """An Ethernet frame of one ICMPv6 message with hop limit 255; `body` follows the checksum."""
    length = 4 + len(body)
    checksum = -message_sum(source + destination + body, length + (icmp_type << 8)) % 0xFFFF
    return b"%b%b\x86\xdd%b%b%b%b%b" % (
        eth_destination,
        eth_source,
        struct.pack("!IHBB", 0x60000000, length, ICMPV6, 255),
        source,
        destination,
        struct.pack("!BBH", icmp_type, 0, checksum),
        body,
    )


def checksum_correct(frame: bytes) -> bool:
    """Of a frame of one ICMPv6 message, from its Ethernet header to the message's end."""
    return not message_sum(frame[22:], len(frame) - 54)


def message_sum(data: bytes, more: int) -> int:
    """The one's-complement sum of a message and its pseudo-header (RFC 8200 8.1), by 65535.

    data: addresses and message, an even number of bytes. more: the message's length, and words of
    it that are not in `data`. As 2^16 leaves 1 when divided by 65535, each word of the one large
    number that `data` is counts for itself. 0 stands for 65535, too: data that really sums to 0
    is all zeros, and no message with its pseudo-header is.
    """
    return (int.from_bytes(data, "big") + more + ICMPV6) % 0xFFFF
