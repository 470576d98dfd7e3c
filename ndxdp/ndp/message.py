"""Neighbor Discovery as every node speaks it: what is sent unasked, and advertisements heard.

ndp/responder.py answers for others; this speaks and listens for itself. It knows no socket
and no kernel.
Section numbers are RFC 4861's unless they say otherwise; frames are Ethernet frames without FCS,
addresses 16 bytes and MACs 6, all in network byte order.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from ndxdp.ndp.address import ALL_NODES, ALL_NODES_MAC, LOOPBACK, UNSPECIFIED, solicited_node_group
from ndxdp.ndp.frame import (
    ETHERTYPE_IPV6,
    FRAME_MAX,
    HEADERS_LEN,
    ICMPV6,
    NA_LEN,
    NS_LEN,
    OPTIONS_AT,
    OVERRIDE,
    ROUTER,
    SLLAO,
    SOLICITED,
    TLLAO,
    TYPE_NA,
    TYPE_NS,
    checksum_correct,
    icmpv6_frame,
    message_sum,
)
from ndxdp.ndp.profile import DEFAULT_PROFILE, NaSource, Profile


@dataclass(frozen=True, slots=True)
class Host:
    """The answering interface: its MAC (6 bytes) and link-local address (16 bytes, or ::)."""

    mac: bytes
    link_local: bytes = UNSPECIFIED
    paused: bool = False


class Solicitation(NamedTuple):
    """A valid solicitation: addresses of 16 bytes, MACs of 6.

    peer: whom the answer goes to: the SLLAO if there was one, else the Ethernet source.
    """

    source: bytes
    target: bytes
    eth_source: bytes
    peer: bytes

    @property
    def dad(self) -> bool:
        """It asks whether the target is in use already (RFC 4862 5.4.2)."""
        return self.source == UNSPECIFIED


@dataclass(frozen=True, slots=True)
class OwnAdvertisement:
    """Our answer, decoded: addresses of 16 bytes, MACs of 6."""

    eth_source: bytes
    eth_destination: bytes
    source: bytes
    destination: bytes
    hop_limit: int
    router: bool
    solicited: bool
    override: bool
    target: bytes
    tllao: bytes
    checksum: int
    checksum_correct: bool


_FROM_TARGET = NaSource.TARGET


def advertise(ns: Solicitation, host: Host, profile: Profile = DEFAULT_PROFILE) -> bytes:
    """The answer of 86 bytes: 7.2.4 with 7.2.8, and to all nodes if `ns` was for DAD."""
    destination, target, _, peer = ns
    flags = SOLICITED
    if destination == UNSPECIFIED:
        destination, peer, flags = ALL_NODES, ALL_NODES_MAC, 0
    if profile.router:
        flags |= ROUTER
    if profile.override:
        flags |= OVERRIDE
    if profile.source is _FROM_TARGET:
        source = target
    elif isinstance(profile.source, bytes):
        source = profile.source
    else:
        source = target if host.link_local == UNSPECIFIED else host.link_local
    mac = host.mac
    addresses = source + destination
    rest = target + b"\2\1" + (profile.lladdr or mac)
    checksum = -message_sum(addresses + rest, NA_LEN + (TYPE_NA << 8) + (flags << 8)) % 0xFFFF
    middle = _NA_MIDDLE(TYPE_NA << 8, checksum, flags << 24)
    return b"".join((peer, mac, _NA_HEAD, addresses, middle, rest))


_NA_HEAD = ETHERTYPE_IPV6 + struct.pack("!IHBB", 0x60000000, NA_LEN, ICMPV6, 255)

_NA_MIDDLE = struct.Struct("!HHI").pack


def solicit(
    eth_source: bytes,
    target: bytes,
    *,
    source: bytes = UNSPECIFIED,
    eth_destination: bytes | None = None,
    destination: bytes | None = None,
    sllao: bytes | None = None,
) -> bytes:
    """A solicitation's frame, to the target's solicited-node group unless told otherwise.

    A source of :: makes it a DAD probe; then `sllao` must be None.
    """
    destination = destination or solicited_node_group(target)
    body = bytes(4) + target
    if sllao:
        body += bytes((SLLAO, 1)) + sllao
    return icmpv6_frame(
        eth_source,
        eth_destination or b"\x33\x33" + destination[12:],
        source,
        destination,
        TYPE_NS,
        body,
    )


def decode_own(frame: bytes) -> OwnAdvertisement:
    """Take our own advertisement of 86 bytes apart."""
    flags = frame[58]
    return OwnAdvertisement(
        eth_source=frame[6:12],
        eth_destination=frame[0:6],
        source=frame[22:38],
        destination=frame[38:54],
        hop_limit=frame[21],
        router=bool(flags & ROUTER),
        solicited=bool(flags & SOLICITED),
        override=bool(flags & OVERRIDE),
        target=frame[62:78],
        tllao=frame[80:86],
        checksum=int.from_bytes(frame[56:58], "big"),
        checksum_correct=checksum_correct(frame),
    )


NONCE_LEN = 6
"""Bytes of a nonce that fill one unit of 8 with its header (RFC 3971 5.3.2: at least 6)."""

_NONCE = 14


def probe(mac: bytes, target: bytes, nonce: bytes) -> bytes:
    """A solicitation as Duplicate Address Detection sends it (RFC 4862 5.4.2), of 86 bytes.

    From ::, to the target's solicited-node group, without SLLAO. nonce: 6 random bytes, fresh for
    each frame: by it a node that sees its own probe come back knows that it is its own (RFC 7527).
    """
    if len(nonce) != NONCE_LEN:
        raise ValueError(f"a nonce of {len(nonce)} bytes")
    group = solicited_node_group(target)
    body = bytes(4) + target + bytes((_NONCE, 1)) + nonce
    return icmpv6_frame(mac, b"\x33\x33" + group[12:], UNSPECIFIED, group, TYPE_NS, body)


def unsolicited(
    mac: bytes, target: bytes, *, router: bool = True, lladdr: bytes | None = None
) -> bytes:
    """An unsolicited advertisement to all nodes, of 86 bytes (7.2.6): S=0, O=1, from the target.

    It makes routers create an entry that they do not have yet only where they heed RFC 9131;
    an entry that there is it changes everywhere. lladdr: the TLLAO; None for `mac`.
    """
    flags = OVERRIDE | (ROUTER if router else 0)
    body = bytes((flags, 0, 0, 0)) + target + bytes((TLLAO, 1)) + (lladdr or mac)
    return icmpv6_frame(mac, ALL_NODES_MAC, target, ALL_NODES, TYPE_NA, body)


class Fault(Enum):
    """Why an advertisement is not used. All up to BAD_SOURCE make it invalid (7.1.2)."""

    NOT_NA = "not_na"
    BAD_HOP_LIMIT = "bad_hop_limit"
    BAD_CODE = "bad_code"
    BAD_LENGTH = "bad_length"
    BAD_OPTION = "bad_option"
    BAD_CHECKSUM = "bad_checksum"
    BAD_TARGET = "bad_target"
    BAD_FLAGS = "bad_flags"
    BAD_SOURCE = "bad_source"
    OTHER_HOST = "other_host"
    OTHER_DESTINATION = "other_destination"
    OTHER_TARGET = "other_target"
    NOT_SOLICITED = "not_solicited"
    NO_LLADDR = "no_lladdr"
    BAD_LLADDR = "bad_lladdr"


class NeighborAdvertisement(NamedTuple):
    """A valid advertisement of somebody. lladdr: its TLLAO, None without one."""

    eth_destination: bytes
    eth_source: bytes
    source: bytes
    destination: bytes
    target: bytes
    router: bool
    solicited: bool
    override: bool
    lladdr: bytes | None


def parse_advertisement(frame: bytes) -> NeighborAdvertisement | Fault:
    """7.1.2 whole; of several TLLAOs the first counts, as in Linux."""
    if (
        len(frame) < HEADERS_LEN
        or frame[12:14] != b"\x86\xdd"
        or frame[14] >> 4 != 6
        or (frame[20], frame[54]) != (58, TYPE_NA)
    ):
        return Fault.NOT_NA
    if frame[21] != 255:
        return Fault.BAD_HOP_LIMIT
    if frame[55]:
        return Fault.BAD_CODE
    length = int.from_bytes(frame[18:20], "big")
    end = 54 + length
    if length < NS_LEN or end > len(frame) or len(frame) > FRAME_MAX:
        return Fault.BAD_LENGTH
    lladdr: bytes | None = None
    at = OPTIONS_AT
    while at < end:
        units = frame[at + 1] if at + 1 < end else 0
        if not units or at + units * 8 > end:
            return Fault.BAD_OPTION
        if frame[at] == TLLAO:
            if units != 1:
                return Fault.BAD_OPTION
            lladdr = lladdr or frame[at + 2 : at + 8]
        at += units * 8
    if not checksum_correct(frame[:end]):
        return Fault.BAD_CHECKSUM
    flags, target = frame[58], frame[62:78]
    source, destination = frame[22:38], frame[38:54]
    if target[0] == 0xFF or target in (UNSPECIFIED, LOOPBACK):
        return Fault.BAD_TARGET
    if destination[0] == 0xFF and flags & SOLICITED:
        return Fault.BAD_FLAGS
    if source[0] == 0xFF or source in (UNSPECIFIED, LOOPBACK):
        return Fault.BAD_SOURCE
    return NeighborAdvertisement(
        eth_destination=frame[0:6],
        eth_source=frame[6:12],
        source=source,
        destination=destination,
        target=target,
        router=bool(flags & ROUTER),
        solicited=bool(flags & SOLICITED),
        override=bool(flags & OVERRIDE),
        lladdr=lladdr,
    )


def is_sent_to(heard: NeighborAdvertisement, mac: bytes) -> bool:
    """Return True if an advertisement's frame was sent to a MAC (6 bytes).

    The program sets the group bit (I/G) of some, so that the kernel forwards them nowhere.
    """
    return heard.eth_destination in (mac, bytes((mac[0] | 1,)) + mac[1:])
