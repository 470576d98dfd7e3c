"""Router Solicitations and Router Advertisements: parsing and building. Pure.

Section numbers are those of RFC 4861 unless another RFC is named. Frames are bytes as in frame.py:
addresses have 16 bytes, MACs 6, and all fields are in network byte order. Bytes behind the ICMPv6
message, such as the padding of a short Ethernet frame, are ignored. A message behind an extension
header, a fragment header among them, is no router message here (RFC 6980 forbids fragments).

A router's message may be as long as the link's MTU. The parser takes each length; a frame that its
receiver has cut off is invalid.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import NamedTuple

from ndxdp.ndp.address import (
    ALL_NODES,
    ALL_NODES_MAC,
    UNSPECIFIED,
    group_mac,
    is_link_local,
    is_multicast,
)
from ndxdp.ndp.frame import (
    CODE_AT,
    FLAGS_AT,
    HEADERS_LEN,
    HOP_LIMIT_AT,
    SLLAO,
    TYPE_AT,
    TYPE_RA,
    TYPE_RS,
    checksum_correct,
    eth_source_of,
    icmpv6_frame,
    icmpv6_type_of,
    payload_length_of,
    source_of,
)
from ndxdp.ndp.router_option import lladdr_option, split_options

ALL_ROUTERS = b"\xff\x02" + bytes(13) + b"\x02"

RS_LEN = 8
"""Bytes of ICMPv6 in a solicitation without options (4.1)."""

RA_LEN = 16
"""Bytes of ICMPv6 in an advertisement without options (4.2)."""

PREFERENCE, PROXY = 0x18, 0x04
"""Bits of an advertisement's flags: the preference (RFC 4191 section 2.2), and the P flag of an
advertisement that a proxy has relayed (RFC 4389 section 4.1.3.3)."""

_PARAMETERS = struct.Struct("!BBHII")


class Parameters(NamedTuple):
    """The fixed fields of an advertisement (4.2).

    Attributes:
        hop_limit: The hop limit that hosts shall send with; 0 for no statement.
        flags: The byte of the flags M, O, H, the preference, and P.
        lifetime: Seconds for which the router is a default router, up to 65535; 0 if it is none.
        reachable: The reachable time in milliseconds; 0 for no statement.
        retransmit: The time between solicitations in milliseconds; 0 for no statement.
    """

    hop_limit: int
    flags: int
    lifetime: int
    reachable: int
    retransmit: int


class RouterAdvertisement(NamedTuple):
    """A valid advertisement.

    Attributes:
        source: The router's link-local address.
        parameters: The fixed fields.
        options: The options, in their order.
    """

    source: bytes
    parameters: Parameters
    options: tuple[bytes, ...]


class RouterSolicitation(NamedTuple):
    """A valid solicitation.

    Attributes:
        source: The IPv6 source; :: of a host that has no address yet.
        peer: The MAC that is answered: the SLLAO, or the source MAC without one.
    """

    source: bytes
    peer: bytes


class RouterFault(Enum):
    """Why a router message is not used."""

    OTHER_TYPE = "other_type"
    HOP_LIMIT = "hop_limit"
    SOURCE = "source"
    INVALID = "invalid"


def router_message_type(frame: bytes) -> int | None:
    """Return TYPE_RS or TYPE_RA for an untagged frame with such a message; None for another."""
    if len(frame) < HEADERS_LEN:
        return None
    kind = icmpv6_type_of(frame)
    return kind if kind in (TYPE_RS, TYPE_RA) else None


def parse_router_advertisement(frame: bytes) -> RouterAdvertisement | RouterFault:
    """Parse and validate an untagged frame as a Router Advertisement (6.1.2)."""
    options = _options_of(frame, TYPE_RA, RA_LEN)
    if isinstance(options, RouterFault):
        return options
    source = source_of(frame)
    if not is_link_local(source):
        return RouterFault.SOURCE
    return RouterAdvertisement(
        source=source,
        parameters=Parameters(*_PARAMETERS.unpack_from(frame, FLAGS_AT)),
        options=options,
    )


def parse_router_solicitation(frame: bytes) -> RouterSolicitation | RouterFault:
    """Parse and validate an untagged frame as a Router Solicitation (6.1.1).

    An SLLAO that is no MAC of a node does not count.
    """
    options = _options_of(frame, TYPE_RS, RS_LEN)
    if isinstance(options, RouterFault):
        return options
    source, peer = source_of(frame), eth_source_of(frame)
    lladdrs = [option[2:] for option in options if option[0] == SLLAO]
    if is_multicast(source) or peer[0] & 1 or (source == UNSPECIFIED and lladdrs):
        return RouterFault.INVALID
    if any(len(lladdr) != len(peer) for lladdr in lladdrs):
        return RouterFault.INVALID
    if lladdrs and not lladdrs[0][0] & 1 and any(lladdrs[0]):
        peer = lladdrs[0]
    return RouterSolicitation(source, peer)


def advertise_router(
    eth_source: bytes,
    source: bytes,
    parameters: Parameters,
    options: bytes,
    *,
    destination: bytes = ALL_NODES,
    eth_destination: bytes = ALL_NODES_MAC,
) -> bytes:
    """Build an advertisement's frame (4.2): 70 bytes and the options.

    Args:
        eth_source: The source MAC.
        source: The router's link-local address.
        parameters: The fixed fields.
        options: The options, one after the other.
        destination: The IPv6 destination.
        eth_destination: The destination MAC.
    """
    body = _PARAMETERS.pack(*parameters) + options
    return icmpv6_frame(eth_source, eth_destination, source, destination, TYPE_RA, body)


def solicit_routers(mac: bytes, source: bytes) -> bytes:
    """Build a solicitation's frame (4.1), from a MAC and an address, to all routers.

    A solicitation from :: has no SLLAO.
    """
    body = bytes(4) + (b"" if source == UNSPECIFIED else lladdr_option(mac))
    return icmpv6_frame(mac, group_mac(ALL_ROUTERS), source, ALL_ROUTERS, TYPE_RS, body)


def _options_of(frame: bytes, kind: int, fixed: int) -> tuple[bytes, ...] | RouterFault:
    """Validate what both messages have in common; `fixed` is the length without options."""
    if router_message_type(frame) != kind:
        return RouterFault.OTHER_TYPE
    if frame[HOP_LIMIT_AT] != 255:
        return RouterFault.HOP_LIMIT
    length = payload_length_of(frame)
    end = TYPE_AT + length
    if frame[CODE_AT] or length < fixed or end > len(frame):
        return RouterFault.INVALID
    options = split_options(frame[TYPE_AT + fixed : end])
    if options is None or not checksum_correct(frame[:end]):
        return RouterFault.INVALID
    return options
