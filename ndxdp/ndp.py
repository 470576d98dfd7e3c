"""Neighbor Discovery on the wire: the decision and the answer, bytes in, bytes out.

This is the executable specification of bpf/ndp_responder.c: the same checks in the same order,
the same reasons, the same bytes. It knows no socket and no kernel. Section numbers are
RFC 4861's unless they say otherwise; frames are Ethernet frames without FCS, everything in them
in network byte order.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum

FRAME_MAX = 1514
"""Bytes. A longer frame is no solicitation that any stack sends (NDP_FRAME_MAX)."""

HEADERS_LEN = 58  # Ethernet, IPv6 and ICMPv6 headers
OPTIONS_AT = 78
NS_LEN = 24  # ICMPv6 length of a solicitation without options
NA_LEN = 32  # ... and of our advertisement, with its TLLAO

UNSPECIFIED = bytes(16)
LOOPBACK = bytes(15) + b"\1"
ALL_NODES = socket.inet_pton(socket.AF_INET6, "ff02::1")
ALL_NODES_MAC = bytes.fromhex("333300000001")

_ETHERTYPE_IPV6 = b"\x86\xdd"
_ICMPV6 = 58
_TYPE_NS = 135
_TYPE_NA = 136
_SLLAO = 1
_TLLAO = 2
_ROUTER, _SOLICITED, _OVERRIDE = 0x80, 0x40, 0x20


class Reason(IntEnum):
    """Why a solicitation was answered or not; the numbers are `enum ndp_reason`'s."""

    NOT_NS = 0
    OWN_FRAME = 1
    OTHER_HOST = 2
    BAD_HOP_LIMIT = 3
    BAD_CODE = 4
    BAD_LENGTH = 5
    BAD_OPTION = 6
    BAD_CHECKSUM = 7
    BAD_TARGET = 8
    BAD_SOURCE = 9
    PAUSED = 10
    NO_RULE = 11
    DENIED = 12
    EXPIRED = 13
    NO_ROUTE = 14
    NO_NEIGHBOUR = 15
    DAD_IGNORED = 16
    RATE_LIMITED = 17
    RESIZE_FAILED = 18
    ANSWERED = 19
    ANSWERED_DAD = 20

    @property
    def label(self) -> str:
        """The reason as metrics and commands print it: `no_rule`."""
        return self.name.lower()

    @property
    def is_answer(self) -> bool:
        return self >= Reason.ANSWERED


class Answer(IntEnum):
    """What a rule says of its targets; the numbers are `enum ndp_answer`'s."""

    NEVER = 0
    ALWAYS = 1


class NaSource(Enum):
    """An advertisement's source where it is not an address given outright."""

    TARGET = "target"
    LINK_LOCAL = "link-local"


@dataclass(frozen=True, slots=True)
class Profile:
    """How a rule answers.

    source: the advertisement's IPv6 source: the target, the interface's link-local address
        (the target while it has none), or an address of 16 bytes.
    router, override: the R and O flags. A proxy's advertisement has O=0 (7.2.8).
    defend: answer Duplicate Address Detection for the target.
    lladdr: the TLLAO, 6 bytes; None for the interface's MAC.
    """

    source: NaSource | bytes = NaSource.TARGET
    router: bool = True
    override: bool = False
    defend: bool = True
    lladdr: bytes | None = None


DEFAULT_PROFILE = Profile()


@dataclass(frozen=True, slots=True)
class Match:
    """The most specific rule of a target, as far as the decision needs it.

    held: the host or the gateway owns the address.
    expired: the rule is dynamic and its daemon has stopped beating.
    """

    answer: Answer
    profile: Profile = DEFAULT_PROFILE
    held: bool = False
    expired: bool = False


@dataclass(frozen=True, slots=True)
class Host:
    """The answering interface: its MAC (6 bytes) and link-local address (16 bytes, or ::)."""

    mac: bytes
    link_local: bytes = UNSPECIFIED
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A reason, and the advertisement's frame if the reason is an answer."""

    reason: Reason
    reply: bytes | None = None


@dataclass(frozen=True, slots=True)
class Solicitation:
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
class Advertisement:
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


class Limiter:
    """A token bucket for each soliciting MAC, each one number (GCRA).

    interval: ns between answers; 0 for no limit. credit: ns that a source may run ahead, that
    is (burst - 1) intervals. clock: ns, monotonic. At most `size` sources are remembered; the
    one not answered for longest is forgotten first.
    """

    def __init__(
        self, interval: int, credit: int, clock: Callable[[], int], size: int = 8192
    ) -> None:
        self._interval, self._credit, self._clock, self._size = interval, credit, clock, size
        self._paid: dict[bytes, int] = {}

    def admit(self, mac: bytes) -> bool:
        """Charge one answer to `mac`; False if it has run out of credit."""
        if not self._interval:
            return True
        now = self._clock()
        until = max(self._paid.get(mac, now), now)
        if until - now > self._credit:
            return False
        self._paid.pop(mac, None)
        self._paid[mac] = until + self._interval
        if len(self._paid) > self._size:
            del self._paid[next(iter(self._paid))]
        return True


def is_solicitation(frame: bytes) -> bool:
    """Untagged IPv6 that is ICMPv6 type 135, with the ICMPv6 header inside the frame.

    Anything else, a VLAN tag or an extension header in the way included, is not our business
    and is not counted.
    """
    return (
        len(frame) >= HEADERS_LEN
        and frame[12:14] == _ETHERTYPE_IPV6
        and frame[20] == _ICMPV6
        and frame[54] == _TYPE_NS
        and frame[14] >> 4 == 6
    )


def decide(
    frame: bytes,
    host: Host,
    match: Callable[[bytes], Match | None],
    admit: Callable[[bytes], bool] = lambda mac: True,
) -> Verdict:
    """What becomes of one frame.

    match: the most specific rule of a target (16 bytes), None without one.
    admit: charge an answer to a soliciting MAC (6 bytes); False if it is over its rate.
    A reason that is no answer leaves the frame to the kernel, except RATE_LIMITED, which drops.
    """
    if not is_solicitation(frame):
        return Verdict(Reason.NOT_NS)
    ns = validate(frame, host.mac)
    if isinstance(ns, Reason):
        return Verdict(ns)
    if host.paused:
        return Verdict(Reason.PAUSED)
    rule = match(ns.target)
    if rule is None:
        return Verdict(Reason.NO_RULE)
    if rule.answer is not Answer.ALWAYS or rule.held:
        return Verdict(Reason.DENIED)
    if rule.expired:
        return Verdict(Reason.EXPIRED)
    if ns.dad and not rule.profile.defend:
        return Verdict(Reason.DAD_IGNORED)
    if not admit(ns.eth_source):
        return Verdict(Reason.RATE_LIMITED)
    reason = Reason.ANSWERED_DAD if ns.dad else Reason.ANSWERED
    return Verdict(reason, advertise(ns, host, rule.profile))


def validate(frame: bytes, mac: bytes) -> Solicitation | Reason:
    """7.1.1 whole, and what Ethernet asks before it, of a frame that is_solicitation()."""
    source, destination = frame[22:38], frame[38:54]
    if frame[6:12] == mac:
        return Reason.OWN_FRAME
    if frame[0:6] != mac and not (
        _is_multicast(destination) and frame[0:6] == b"\x33\x33" + destination[12:]
    ):
        return Reason.OTHER_HOST
    if frame[21] != 255:
        return Reason.BAD_HOP_LIMIT
    if frame[55] != 0:
        return Reason.BAD_CODE
    length = frame[18] << 8 | frame[19]
    end = 54 + length
    if length < NS_LEN or end > len(frame) or len(frame) > FRAME_MAX:
        return Reason.BAD_LENGTH
    sllao: bytes | None = None
    at = OPTIONS_AT
    while at < end:
        size = frame[at + 1] * 8 if at + 1 < end else 0
        if not size or at + size > end:
            return Reason.BAD_OPTION
        if frame[at] == _SLLAO:
            if size != 8:  # 4.6.1: one unit on Ethernet; another names no Ethernet address
                return Reason.BAD_OPTION
            sllao = sllao or frame[at + 2 : at + 8]
        at += size
    if _sum(_pseudo_header(source, destination, length) + frame[54:end]) != 0xFFFF:
        return Reason.BAD_CHECKSUM
    target = frame[62:78]
    if _is_multicast(target) or target in (UNSPECIFIED, LOOPBACK):
        return Reason.BAD_TARGET
    if _is_multicast(source):
        return Reason.BAD_SOURCE
    if source == UNSPECIFIED and (sllao or destination != solicited_node_group(target)):
        return Reason.BAD_SOURCE
    return Solicitation(source, target, frame[6:12], sllao or frame[6:12])


def advertise(ns: Solicitation, host: Host, profile: Profile = DEFAULT_PROFILE) -> bytes:
    """The answer of 86 bytes: 7.2.4 with 7.2.8, and to all nodes if `ns` was for DAD."""
    destination, peer = (ALL_NODES, ALL_NODES_MAC) if ns.dad else (ns.source, ns.peer)
    if isinstance(profile.source, bytes):
        source = profile.source
    elif profile.source is NaSource.LINK_LOCAL and host.link_local != UNSPECIFIED:
        source = host.link_local
    else:
        source = ns.target
    flags = (
        (_ROUTER if profile.router else 0)
        | (0 if ns.dad else _SOLICITED)
        | (_OVERRIDE if profile.override else 0)
    )
    body = struct.pack("!B3x16sBB6s", flags, ns.target, _TLLAO, 1, profile.lladdr or host.mac)
    return icmpv6_frame(host.mac, peer, source, destination, _TYPE_NA, body)


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
        body += bytes((_SLLAO, 1)) + sllao
    return icmpv6_frame(
        eth_source,
        eth_destination or b"\x33\x33" + destination[12:],
        source,
        destination,
        _TYPE_NS,
        body,
    )


def decode_advertisement(frame: bytes) -> Advertisement:
    """Take our own advertisement of 86 bytes apart."""
    flags = frame[58]
    length = len(frame) - 54
    return Advertisement(
        eth_source=frame[6:12],
        eth_destination=frame[0:6],
        source=frame[22:38],
        destination=frame[38:54],
        hop_limit=frame[21],
        router=bool(flags & _ROUTER),
        solicited=bool(flags & _SOLICITED),
        override=bool(flags & _OVERRIDE),
        target=frame[62:78],
        tllao=frame[80:86],
        checksum=int.from_bytes(frame[56:58], "big"),
        checksum_correct=_sum(_pseudo_header(frame[22:38], frame[38:54], length) + frame[54:])
        == 0xFFFF,
    )


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
    pseudo = _pseudo_header(source, destination, length)
    checksum = 0xFFFF - _sum(pseudo + bytes((icmp_type, 0, 0, 0)) + body)
    return b"".join(
        (
            eth_destination,
            eth_source,
            _ETHERTYPE_IPV6,
            struct.pack("!IHBB", 0x60000000, length, _ICMPV6, 255),
            source,
            destination,
            struct.pack("!BBH", icmp_type, 0, checksum),
            body,
        )
    )


def solicited_node_group(address: bytes) -> bytes:
    """ff02::1:ffXX:XXXX of the address's last 24 bits (RFC 4291 2.7.1)."""
    return b"\xff\x02" + bytes(9) + b"\x01\xff" + address[13:]


def _is_multicast(address: bytes) -> bool:
    return address[0] == 0xFF


def _pseudo_header(source: bytes, destination: bytes, length: int) -> bytes:
    """RFC 8200 8.1."""
    return source + destination + struct.pack("!II", length, _ICMPV6)


def _sum(data: bytes) -> int:
    """The one's-complement sum of 16-bit words: a number's remainder by 65535, as 2^16 is 1.

    0 comes out as 65535, of which it is the other name; only all-zero data sums to true zero,
    and a pseudo-header is never that. `data` has an even length.
    """
    return int.from_bytes(data, "big") % 0xFFFF or 0xFFFF
