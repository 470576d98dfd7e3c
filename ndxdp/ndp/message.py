"""Solicitations and advertisements: building and parsing. Pure.

Section numbers are those of RFC 4861 unless another RFC is named. Frames are bytes as in frame.py:
addresses have 16 bytes, MACs 6, and all fields are in network byte order.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from ndxdp.ndp.address import (
    ALL_NODES,
    ALL_NODES_MAC,
    LOOPBACK,
    UNSPECIFIED,
    group_mac,
    is_multicast,
    solicited_node_group,
)
from ndxdp.ndp.frame import (
    CODE_AT,
    ETH_P_IPV6,
    FRAME_MAX,
    HEADERS_LEN,
    HOP_LIMIT_AT,
    ICMPV6,
    NA_LEN,
    NONCE,
    NS_LEN,
    OPTIONS_AT,
    OVERRIDE,
    ROUTER,
    SLLAO,
    SOLICITED,
    TLLAO,
    TYPE_AT,
    TYPE_NA,
    TYPE_NS,
    checksum_correct,
    checksum_of,
    destination_of,
    eth_destination_of,
    eth_source_of,
    flags_of,
    icmpv6_frame,
    icmpv6_type_of,
    lladdr_of,
    message_sum,
    payload_length_of,
    source_of,
    target_of,
)
from ndxdp.ndp.profile import DEFAULT_PROFILE, NaSource, Profile

NONCE_LEN = 6
"""Bytes of a nonce; with the option header 8 bytes (RFC 3971 section 5.3.2 asks for at least 6)."""


@dataclass(frozen=True, slots=True)
class Host:
    """The interface that answers.

    Attributes:
        mac: The interface's MAC, 6 bytes.
        link_local: The interface's link-local address, 16 bytes; :: while there is none.
        paused: True while the interface answers no solicitation.
    """

    mac: bytes
    link_local: bytes = UNSPECIFIED
    paused: bool = False


class Solicitation(NamedTuple):
    """A valid solicitation; addresses have 16 bytes, MACs 6.

    Attributes:
        source: The IPv6 source; :: for Duplicate Address Detection.
        target: The target.
        eth_source: The source MAC of the frame.
        peer: The MAC that is answered: the SLLAO, or the source MAC without one.
    """

    source: bytes
    target: bytes
    eth_source: bytes
    peer: bytes

    @property
    def dad(self) -> bool:
        """True for Duplicate Address Detection (RFC 4862 section 5.4.2)."""
        return self.source == UNSPECIFIED


@dataclass(frozen=True, slots=True)
class OwnAdvertisement:
    """The fields of an advertisement that advertise() has built; addresses 16 bytes, MACs 6."""

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


class NeighborAdvertisement(NamedTuple):
    """A valid advertisement that was received; addresses have 16 bytes, MACs 6.

    Attributes:
        eth_destination: The destination MAC of the frame.
        eth_source: The source MAC of the frame.
        source: The IPv6 source.
        destination: The IPv6 destination.
        target: The target.
        router: The R flag.
        solicited: The S flag.
        override: The O flag.
        lladdr: The MAC in the TLLAO; None without a TLLAO.
    """

    eth_destination: bytes
    eth_source: bytes
    source: bytes
    destination: bytes
    target: bytes
    router: bool
    solicited: bool
    override: bool
    lladdr: bytes | None


class Fault(Enum):
    """Why an advertisement is not used. The faults up to BAD_SOURCE make it invalid (7.1.2)."""

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


# ---- solicitations ------------------------------------------------------------------------------


def solicit(
    eth_source: bytes,
    target: bytes,
    *,
    source: bytes = UNSPECIFIED,
    eth_destination: bytes | None = None,
    destination: bytes | None = None,
    sllao: bytes | None = None,
) -> bytes:
    """Build a solicitation's frame (4.3): 78 bytes, or 86 with an SLLAO.

    Args:
        eth_source: The source MAC.
        target: The target.
        source: The IPv6 source. A source of :: is DAD, which has no SLLAO (7.1.1).
        eth_destination: The destination MAC; None for that of the group.
        destination: The IPv6 destination; None for the target's solicited-node group.
        sllao: The MAC in the SLLAO; None for no SLLAO.
    """
    destination = destination or solicited_node_group(target)
    body = bytes(4) + target
    if sllao:
        body += bytes((SLLAO, 1)) + sllao
    return icmpv6_frame(
        eth_source, eth_destination or group_mac(destination), source, destination, TYPE_NS, body
    )


def probe(mac: bytes, target: bytes, nonce: bytes) -> bytes:
    """Build a solicitation of Duplicate Address Detection (RFC 4862 section 5.4.2): 86 bytes.

    The solicitation is sent from :: to the target's solicited-node group, without an SLLAO.

    Args:
        mac: The source MAC.
        target: The target.
        nonce: 6 random bytes, different in each frame. A node recognises its own probe by the nonce
            when the network reflects the frame (RFC 7527).

    Raises:
        ValueError: The nonce has another length.
    """
    if len(nonce) != NONCE_LEN:
        raise ValueError(f"a nonce of {len(nonce)} bytes")
    group = solicited_node_group(target)
    body = bytes(4) + target + bytes((NONCE, 1)) + nonce
    return icmpv6_frame(mac, group_mac(group), UNSPECIFIED, group, TYPE_NS, body)


# ---- advertisements -----------------------------------------------------------------------------

_FROM_TARGET = NaSource.TARGET
_NA_HEAD = struct.pack("!HIHBB", ETH_P_IPV6, 0x60000000, NA_LEN, ICMPV6, 255)
_NA_MIDDLE = struct.Struct("!HHI").pack


def advertise(ns: Solicitation, host: Host, profile: Profile = DEFAULT_PROFILE) -> bytes:
    """Build the answer to a solicitation: a frame of 86 bytes (7.2.4, and 7.2.8 for a proxy).

    The answer to DAD is sent to all nodes with S=0; every other answer is sent to the MAC `ns.peer`
    and the address `ns.source` with S=1.
    """
    destination, target, _, peer = ns
    flags = SOLICITED
    if destination == UNSPECIFIED:
        destination, peer, flags = ALL_NODES, ALL_NODES_MAC, 0
    if profile.router:
        flags |= ROUTER
    if profile.override:
        flags |= OVERRIDE
    source = fixed_source(host, profile) or target
    mac = host.mac
    addresses = source + destination
    rest = target + b"\2\1" + (profile.lladdr or mac)
    checksum = -message_sum(addresses + rest, NA_LEN + (TYPE_NA << 8) + (flags << 8)) % 0xFFFF
    middle = _NA_MIDDLE(TYPE_NA << 8, checksum, flags << 24)
    return b"".join((peer, mac, _NA_HEAD, addresses, middle, rest))


def fixed_source(host: Host, profile: Profile) -> bytes | None:
    """Return the source of all answers by a profile; None if it is the target of each answer."""
    if profile.source is _FROM_TARGET:
        return None
    if isinstance(profile.source, bytes):
        return profile.source
    return None if host.link_local == UNSPECIFIED else host.link_local


def unsolicited(
    mac: bytes,
    target: bytes,
    *,
    router: bool = True,
    lladdr: bytes | None = None,
    node: tuple[bytes, bytes] = (ALL_NODES_MAC, ALL_NODES),
) -> bytes:
    """Build an unsolicited advertisement with O=1 from the target (7.2.6): 86 bytes.

    The advertisement changes entries that nodes have. Only routers that implement RFC 9131 also
    create an entry.

    Args:
        mac: The source MAC.
        target: The target, which is the IPv6 source as well.
        router: The R flag.
        lladdr: The MAC in the TLLAO; None for `mac`.
        node: MAC and address of the receiver; all nodes by default.
    """
    flags = OVERRIDE | (ROUTER if router else 0)
    body = bytes((flags, 0, 0, 0)) + target + bytes((TLLAO, 1)) + (lladdr or mac)
    eth_destination, destination = node
    return icmpv6_frame(mac, eth_destination, target, destination, TYPE_NA, body)


def decode_own(frame: bytes) -> OwnAdvertisement:
    """Decode an advertisement of 86 bytes that advertise() has built, without validating it."""
    flags = flags_of(frame)
    return OwnAdvertisement(
        eth_source=eth_source_of(frame),
        eth_destination=eth_destination_of(frame),
        source=source_of(frame),
        destination=destination_of(frame),
        hop_limit=frame[HOP_LIMIT_AT],
        router=bool(flags & ROUTER),
        solicited=bool(flags & SOLICITED),
        override=bool(flags & OVERRIDE),
        target=target_of(frame),
        tllao=lladdr_of(frame),
        checksum=checksum_of(frame),
        checksum_correct=checksum_correct(frame),
    )


def parse_advertisement(frame: bytes) -> NeighborAdvertisement | Fault:
    """Parse and validate an untagged frame as an advertisement (7.1.2).

    The first of several TLLAOs counts, as in Linux. Bytes behind the ICMPv6 message are ignored.
    """
    if len(frame) < HEADERS_LEN or icmpv6_type_of(frame) != TYPE_NA:
        return Fault.NOT_NA
    if frame[HOP_LIMIT_AT] != 255:
        return Fault.BAD_HOP_LIMIT
    if frame[CODE_AT]:
        return Fault.BAD_CODE
    length = payload_length_of(frame)
    end = TYPE_AT + length
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
    flags, target = flags_of(frame), target_of(frame)
    source, destination = source_of(frame), destination_of(frame)
    if is_multicast(target) or target in (UNSPECIFIED, LOOPBACK):
        return Fault.BAD_TARGET
    if is_multicast(destination) and flags & SOLICITED:
        return Fault.BAD_FLAGS
    if is_multicast(source) or source in (UNSPECIFIED, LOOPBACK):
        return Fault.BAD_SOURCE
    return NeighborAdvertisement(
        eth_destination=eth_destination_of(frame),
        eth_source=eth_source_of(frame),
        source=source,
        destination=destination,
        target=target,
        router=bool(flags & ROUTER),
        solicited=bool(flags & SOLICITED),
        override=bool(flags & OVERRIDE),
        lladdr=lladdr,
    )


def is_sent_to(advertisement: NeighborAdvertisement, mac: bytes) -> bool:
    """Return True if the frame of an advertisement was sent to a MAC (6 bytes).

    The BPF program sets the group bit (I/G) in some of these frames to keep the kernel from
    forwarding them; such a frame counts as sent to the MAC.
    """
    return advertisement.eth_destination in (mac, bytes((mac[0] | 1,)) + mac[1:])
