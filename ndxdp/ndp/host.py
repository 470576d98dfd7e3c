"""Neighbor Discovery as every node speaks it: what is sent unasked, and advertisements heard.

ndp/responder.py answers for others; this speaks and listens for itself. It knows no socket
and no kernel.
Section numbers are RFC 4861's unless they say otherwise; frames are Ethernet frames without FCS,
addresses 16 bytes and MACs 6, all in network byte order.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from ndxdp.ndp.responder import (
    ALL_NODES,
    ALL_NODES_MAC,
    FRAME_MAX,
    HEADERS_LEN,
    LOOPBACK,
    NS_LEN,
    OPTIONS_AT,
    TYPE_NA,
    TYPE_NS,
    UNSPECIFIED,
    checksum_correct,
    icmpv6_frame,
    solicited_node_group,
)

NONCE_LEN = 6
"""Bytes of a nonce that fill one unit of 8 with its header (RFC 3971 5.3.2: at least 6)."""

_TLLAO, _NONCE = 2, 14
_ROUTER, _SOLICITED, _OVERRIDE = 0x80, 0x40, 0x20


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
    flags = _OVERRIDE | (_ROUTER if router else 0)
    body = bytes((flags, 0, 0, 0)) + target + bytes((_TLLAO, 1)) + (lladdr or mac)
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


class Heard(NamedTuple):
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


def decode_na(frame: bytes) -> Heard | Fault:
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
        if frame[at] == _TLLAO:
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
    if destination[0] == 0xFF and flags & _SOLICITED:
        return Fault.BAD_FLAGS
    if source[0] == 0xFF or source in (UNSPECIFIED, LOOPBACK):
        return Fault.BAD_SOURCE
    return Heard(
        eth_destination=frame[0:6],
        eth_source=frame[6:12],
        source=source,
        destination=destination,
        target=target,
        router=bool(flags & _ROUTER),
        solicited=bool(flags & _SOLICITED),
        override=bool(flags & _OVERRIDE),
        lladdr=lladdr,
    )


class Question(NamedTuple):
    """A solicitation that was sent: from which MAC and address, for which target."""

    mac: bytes
    source: bytes
    target: bytes


class Reply(NamedTuple):
    """What an answer says: the target's MAC, R and O flag."""

    mac: bytes
    router: bool
    override: bool


def reply_to(question: Question, frame: bytes, known: bytes | None) -> Reply | Fault:
    """What a frame says to a question that was sent to the target's solicited-node group.

    known: the MAC that the target is believed to have. An advertisement without TLLAO confirms
    that and no other (7.2.5); one that answers a multicast solicitation must have it (7.2.4).
    """
    heard = decode_na(frame)
    if isinstance(heard, Fault):
        return heard
    if not is_sent_to(heard, question.mac):
        return Fault.OTHER_HOST
    if heard.destination != question.source:
        return Fault.OTHER_DESTINATION
    if heard.target != question.target:
        return Fault.OTHER_TARGET
    if not heard.solicited:
        return Fault.NOT_SOLICITED
    mac = heard.lladdr
    if mac is None:
        if heard.eth_source != known:
            return Fault.NO_LLADDR
        mac = known
    if mac[0] & 1 or not any(mac) or mac == question.mac:
        return Fault.BAD_LLADDR
    return Reply(mac, heard.router, heard.override)


def is_sent_to(heard: Heard, mac: bytes) -> bool:
    """Return True if an advertisement's frame was sent to a MAC (6 bytes).

    The program sets the group bit (I/G) of some, so that the kernel forwards them nowhere.
    """
    return heard.eth_destination in (mac, bytes((mac[0] | 1,)) + mac[1:])
