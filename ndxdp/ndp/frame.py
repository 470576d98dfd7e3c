"""Ethernet frames of Neighbor Discovery: layout, accessors and checksum. Pure.

A frame is bytes from the Ethernet header on, without FCS. All fields are in network byte order; a
MAC has 6 bytes and an IPv6 address 16. The offsets hold for a frame without a VLAN tag (see
untagged()) whose IPv6 header (RFC 8200 section 3) is followed by the ICMPv6 header (RFC 4443
section 2.1).

The accessors do not check lengths: the caller knows that the frame has the field, or accepts that
the bytes of a truncated frame are fewer.
"""

from __future__ import annotations

import struct

ETHERTYPE_AT = 12
VERSION_AT = 14
NEXT_HEADER_AT = 20
HOP_LIMIT_AT = 21
SOURCE_AT = 22
DESTINATION_AT = 38
TYPE_AT = 54
CODE_AT = 55
FLAGS_AT = 58
TARGET_AT = 62
OPTIONS_AT = 78
"""Offsets of the fields, in bytes. A solicitation has zeros at FLAGS_AT."""

HEADERS_LEN = 58
"""Bytes of the Ethernet, IPv6 and ICMPv6 headers together."""

FRAME_MAX = 1514
"""Bytes. No stack sends a solicitation in a longer frame (NDP_FRAME_MAX)."""

NS_LEN = 24
"""Bytes of ICMPv6 in a solicitation without options (RFC 4861 section 4.3)."""

NA_LEN = 32
"""Bytes of ICMPv6 in an advertisement of ndxdp: the header, the target and a TLLAO."""

NA_FRAME_LEN = TYPE_AT + NA_LEN
"""Bytes of the frame of such an advertisement."""

OTHER_VLAN_LEN = 54
"""Bytes that the socket filter keeps of a solicitation in another VLAN, whose tag the kernel has
removed from the frame. No other frame that is_solicitation() accepts is as short."""

ETH_P_IPV6 = 0x86DD
ICMPV6 = 58
TYPE_RS, TYPE_RA, TYPE_NS, TYPE_NA = 133, 134, 135, 136
"""Types of ICMPv6 messages (RFC 4861 sections 4.1 to 4.4)."""

SLLAO, TLLAO, NONCE = 1, 2, 14
"""Types of options (RFC 4861 section 4.6.1, RFC 3971 section 5.3.2)."""

ROUTER, SOLICITED, OVERRIDE = 0x80, 0x40, 0x20
"""Flags R, S and O in an advertisement's byte at FLAGS_AT (RFC 4861 section 4.4)."""

unpack_headers = struct.Struct("!6s6s6xHxB16s16sxB6x16s").unpack_from
"""Unpack the fields that validation needs: destination MAC, source MAC, payload length, hop limit,
source, destination, ICMPv6 code, target. The frame must have OPTIONS_AT bytes."""

unpack_by_target = struct.Struct("!3s3s45s3s2sHI16s8s").unpack
"""Unpack a solicitation with one option of 8 bytes into what depends on its target and what does
not: both halves of the destination MAC, everything up to the last 3 bytes of the destination, those
bytes, type and code, checksum, reserved field, target, option."""

_ADVERTISEMENT = struct.Struct("!22s16s18sH4s16s8s")
unpack_advertisement, pack_advertisement = _ADVERTISEMENT.unpack, _ADVERTISEMENT.pack
"""Unpack or pack an advertisement of NA_FRAME_LEN bytes: everything before the source, source,
everything up to the code, checksum, flags, target, option."""

_ETHERTYPE_IPV6 = ETH_P_IPV6.to_bytes(2, "big")
_VLAN_ID = 0x0FFF
_VLAN_TYPES = (b"\x81\x00", b"\x88\xa8")  # 802.1Q, 802.1ad


def eth_destination_of(frame: bytes) -> bytes:
    """Return the destination MAC of a frame."""
    return frame[:6]


def eth_source_of(frame: bytes) -> bytes:
    """Return the source MAC of a frame."""
    return frame[6:12]


def payload_length_of(frame: bytes) -> int:
    """Return the payload length in the IPv6 header: bytes of ICMPv6 where nothing precedes it."""
    return int.from_bytes(frame[18:20], "big")


def source_of(frame: bytes) -> bytes:
    """Return the IPv6 source address of a frame."""
    return frame[22:38]


def destination_of(frame: bytes) -> bytes:
    """Return the IPv6 destination address of a frame."""
    return frame[38:54]


def icmpv6_type_of(frame: bytes) -> int | None:
    """Return the type of the ICMPv6 message in an untagged frame; None if the frame has none."""
    if (
        len(frame) <= TYPE_AT
        or frame[12:14] != _ETHERTYPE_IPV6
        or frame[VERSION_AT] >> 4 != 6
        or frame[NEXT_HEADER_AT] != ICMPV6
    ):
        return None
    return frame[TYPE_AT]


def checksum_of(frame: bytes) -> int:
    """Return the ICMPv6 checksum field."""
    return int.from_bytes(frame[56:58], "big")


def flags_of(frame: bytes) -> int:
    """Return the byte with the flags R, S and O of an advertisement."""
    return frame[FLAGS_AT]


def target_of(frame: bytes) -> bytes:
    """Return the target address of a solicitation or advertisement."""
    return frame[62:78]


def lladdr_of(frame: bytes) -> bytes:
    """Return the MAC in the first option, where that option is an SLLAO or a TLLAO."""
    return frame[80:86]


def is_solicitation(frame: bytes) -> bool:
    """Return True for an untagged IPv6 frame with an ICMPv6 message of type 135.

    The whole ICMPv6 header must be in the frame. ndxdp ignores every other frame and does not count
    it; that includes a solicitation behind an extension header.
    """
    return len(frame) >= HEADERS_LEN and icmpv6_type_of(frame) == TYPE_NS


def vlan_of(frame: bytes) -> int:
    """Return the number of the VLAN in a tagged frame; 0 for a tag that is only a priority."""
    return int.from_bytes(frame[14:16], "big") & _VLAN_ID


def untagged(frame: bytes) -> bytes:
    """Return a frame without the VLAN tag behind its MACs, or the frame itself if it has no tag."""
    return frame[:12] + frame[16:] if frame[12:14] in _VLAN_TYPES else frame


def icmpv6_frame(
    eth_source: bytes,
    eth_destination: bytes,
    source: bytes,
    destination: bytes,
    icmp_type: int,
    body: bytes,
) -> bytes:
    """Build the frame of one ICMPv6 message with hop limit 255 and code 0.

    Args:
        eth_source: The source MAC.
        eth_destination: The destination MAC.
        source: The IPv6 source address.
        destination: The IPv6 destination address.
        icmp_type: The ICMPv6 type.
        body: The message from the byte after its checksum on; an even number of bytes.
    """
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
    """Return True if the ICMPv6 checksum is correct; the frame must end with the ICMPv6 message."""
    return not message_sum(frame[SOURCE_AT:], len(frame) - TYPE_AT)


def message_sum(data: bytes, more: int) -> int:
    """Return the one's-complement sum of a message and its pseudo-header, modulo 65535.

    RFC 8200 section 8.1 defines the checksum. As 2^16 is 1 modulo 65535, the one large number that
    `data` is has the same remainder as the sum of its 16-bit words. A result of 0 stands for 65535
    as well: only data of all zeros has the sum 0, and no message with its pseudo-header is that.

    Args:
        data: Both addresses and the message; an even number of bytes.
        more: The message's length in bytes, plus 16-bit words of the message that `data` lacks.
    """
    return (int.from_bytes(data, "big") + more + ICMPV6) % 0xFFFF
