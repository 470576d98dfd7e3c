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
from functools import partial
from typing import NamedTuple

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

V4_MAPPED = bytes(10) + b"\xff\xff"

OTHER_VLAN_LEN = 54
"""Bytes that are left of a solicitation with the tag of another VLAN beside it, whose receiver sees
no tags. No other frame that is_solicitation() is as short."""

_ETHERTYPE_IPV6 = b"\x86\xdd"
_VLAN_TYPES = (b"\x81\x00", b"\x88\xa8")  # 802.1Q, 802.1ad
_VLAN_ID = 0x0FFF
_ICMPV6 = 58
TYPE_NS = 135
TYPE_NA = 136
_SLLAO = 1
_TLLAO = 2
_ROUTER, _SOLICITED, _OVERRIDE = 0x80, 0x40, 0x20


class Reason(IntEnum):
    """Why a solicitation was answered or not; the numbers are `enum ndp_reason`'s."""

    NOT_NS = 0
    OTHER_VLAN = 1
    OWN_FRAME = 2
    OTHER_HOST = 3
    BAD_HOP_LIMIT = 4
    BAD_CODE = 5
    BAD_LENGTH = 6
    BAD_OPTION = 7
    BAD_CHECKSUM = 8
    BAD_TARGET = 9
    BAD_SOURCE = 10
    PAUSED = 11
    NO_RULE = 12
    DENIED = 13
    EXPIRED = 14
    NOT_LOCAL = 15
    NOT_FORWARDING = 16
    NO_ROUTE = 17
    ROUTE_LOCAL = 18
    ROUTE_BLACKHOLE = 19
    ROUTE_UNREACHABLE = 20
    ROUTE_PROHIBIT = 21
    ROUTE_BACK = 22
    ROUTE_ELSEWHERE = 23
    ROUTE_ENCAP = 24
    ROUTE_GATEWAY = 25
    NO_NEIGHBOUR = 26
    DAD_IGNORED = 27
    DAD_ON_LINK = 28
    RATE_LIMITED = 29
    GATEWAY_LIMITED = 30
    RESIZE_FAILED = 31
    SEND_FAILED = 32
    ANSWERED = 33
    ANSWERED_DAD = 34

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
    ROUTED = 2
    NEIGHBOUR = 3
    LOCAL = 4

    @property
    def asks_kernel(self) -> bool:
        """True if the kernel's tables decide."""
        return self >= Answer.ROUTED

    @property
    def asks_routes(self) -> bool:
        """True if the route decides by which a packet for the target leaves this host."""
        return self in (Answer.ROUTED, Answer.NEIGHBOUR)


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

    owned: the host or the gateway owns the address.
    expired: the rule is dynamic and its daemon has stopped beating.
    rule_class: the number that the rule is counted under; the decision passes it on.
    dev: patterns of interfaces by which a route may leave; () for any.
    exact: it is a rule for the target alone, not for a prefix around it.
    """

    answer: Answer
    profile: Profile = DEFAULT_PROFILE
    owned: bool = False
    expired: bool = False
    rule_class: int = 0
    dev: tuple[str, ...] = ()
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Host:
    """The answering interface: its MAC (6 bytes) and link-local address (16 bytes, or ::)."""

    mac: bytes
    link_local: bytes = UNSPECIFIED
    paused: bool = False


Refuse = Callable[[bytes, Match, bool], Reason | None]
"""Returns why the kernel's tables speak against answering for a target (16 bytes), None if they do
not. The last argument is true where the answer would defend the target against DAD."""

Admit = Callable[[bytes, bytes], Reason | None]
"""See Limiter.charge()."""


class Verdict(NamedTuple):
    """A reason, the advertisement's frame if the reason is an answer, the rule if one matched."""

    reason: Reason
    reply: bytes | None = None
    rule: Match | None = None


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


class Rate(NamedTuple):
    """A bound on how often something may happen.

    interval: ns between two; 0 for no limit. credit: ns that one may run ahead, which is
        (burst - 1) intervals.
    """

    interval: int = 0
    credit: int = 0


_UNLIMITED = Rate()


class Limits(NamedTuple):
    """The limits of one interface.

    each: for one MAC that solicits, and for one that is answered. total: for all of them
    together. gateway: for each gateway, instead of these two.
    """

    each: Rate = _UNLIMITED
    total: Rate = _UNLIMITED
    gateway: Rate = _UNLIMITED

    def __bool__(self) -> bool:
        """True if anything is limited: gateways alone are not."""
        return bool(self.each.interval or self.total.interval)


_TOTAL = b""
"""What the bucket of everybody but the gateways is kept under, which is no MAC."""


class Limiter:
    """Token buckets, each one number: the time up to which its tokens are paid for (GCRA).

    clock: ns, monotonic. At most `size` MACs are remembered; the one not answered for longest is
    forgotten first. gateways: MACs (6 bytes) of the gateways, which the caller may set anew.
    """

    def __init__(self, limits: Limits, clock: Callable[[], int], size: int = 8192) -> None:
        self.gateways: frozenset[bytes] = frozenset()
        self._limits, self._clock, self._size = limits, clock, size
        self._paid: dict[bytes, int] = {}
        self._shares: dict[bytes, int] = {}

    def charge(self, eth_source: bytes, peer: bytes) -> Reason | None:
        """Charge one answer; return why it may not be sent, with nothing charged, or None.

        Args:
            eth_source: The MAC that solicits.
            peer: The MAC that is answered. Anybody can forge the first to have others send frames
                to the second, so that each has a bucket.
        """
        each, total, gateway = self._limits
        now = self._clock()
        if peer == eth_source and peer in self.gateways:
            until = _with_one_more(self._shares.get(peer, now), now, gateway)
            if until is None:
                return Reason.GATEWAY_LIMITED
            self._shares[peer] = until
            return None
        shared = _with_one_more(self._shares.get(_TOTAL, now), now, total)
        by_source = _with_one_more(self._paid.get(eth_source, now), now, each)
        by_peer = _with_one_more(self._paid.get(peer, now), now, each)
        if shared is None or by_source is None or by_peer is None:
            return Reason.RATE_LIMITED
        self._shares[_TOTAL] = shared
        if each.interval:
            self._pay(eth_source, by_source)
            if peer != eth_source:
                self._pay(peer, by_peer)
        return None

    def _pay(self, mac: bytes, until: int) -> None:
        self._paid.pop(mac, None)
        self._paid[mac] = until
        if len(self._paid) > self._size:
            del self._paid[next(iter(self._paid))]


def _with_one_more(paid: int, now: int, limit: Rate) -> int | None:
    """The time up to which a bucket is paid for with one token more; None if it is empty."""
    until = max(paid, now)
    return None if until - now > limit.credit else until + limit.interval


def is_solicitation(frame: bytes) -> bool:
    """Untagged IPv6 that is ICMPv6 type 135, with the ICMPv6 header inside the frame.

    Anything else, an extension header in the way included, is not our business and is not counted.
    """
    return (
        len(frame) >= HEADERS_LEN
        and frame[12:14] == _ETHERTYPE_IPV6
        and frame[20] == _ICMPV6
        and frame[54] == TYPE_NS
        and frame[14] >> 4 == 6
    )


def untagged(frame: bytes) -> bytes:
    """Take the VLAN tag off a frame that has one behind its MACs; return others as they are."""
    return frame[:12] + frame[16:] if frame[12:14] in _VLAN_TYPES else frame


def decide(
    frame: bytes,
    host: Host,
    match: Callable[[bytes], Match | None],
    admit: Admit | None = None,
    refuse: Refuse | None = None,
) -> Verdict:
    """Decide what becomes of one frame, which may have a VLAN tag in it.

    A tag without a VLAN (VID 0) says no more than a priority, and the frame is judged as it is
    without. A reason that is no answer leaves the frame to the kernel, except RATE_LIMITED, which
    drops it.

    Args:
        frame: The frame.
        host: Who answers.
        match: Returns the most specific rule of a target (16 bytes), None without one.
        admit: Charges an answer to a MAC that solicits and one that is answered; returns why it may
            not be sent. None for no limits.
        refuse: See Refuse. None for tables that have nothing.
    """
    inner = untagged(frame)
    if not is_solicitation(inner):
        return Verdict(Reason.NOT_NS)
    if inner is not frame and int.from_bytes(frame[14:16], "big") & _VLAN_ID:
        return Verdict(Reason.OTHER_VLAN)
    return judge(inner, host, match, admit, refuse)


# A member of an Enum takes 75 ns to look up, the constructor of a NamedTuple 250 ns; the
# userspace path has 5 µs for a frame.
_NEVER, _ALWAYS = Answer.NEVER, Answer.ALWAYS
_ANSWERED, _ANSWERED_DAD = Reason.ANSWERED, Reason.ANSWERED_DAD
_FROM_TARGET = NaSource.TARGET
_verdict: Callable[[tuple[Reason, bytes, Match]], Verdict] = partial(tuple.__new__, Verdict)
_solicitation: Callable[[tuple[bytes, bytes, bytes, bytes]], Solicitation] = partial(
    tuple.__new__, Solicitation
)


def judge(
    frame: bytes,
    host: Host,
    match: Callable[[bytes], Match | None],
    admit: Admit | None,
    refuse: Refuse | None,
) -> Verdict:
    """decide(), of a frame that is_solicitation() or is what is left of one with another VLAN."""
    ns = validate(frame, host.mac, match)
    if not isinstance(ns, Solicitation):
        return Verdict(ns)
    if host.paused:
        return Verdict(Reason.PAUSED)
    source, target, eth_source, peer = ns
    rule = match(target)
    if rule is None:
        return Verdict(Reason.NO_RULE)
    if rule.answer is _NEVER or rule.owned:
        return Verdict(Reason.DENIED, None, rule)
    if rule.expired:
        return Verdict(Reason.EXPIRED, None, rule)
    reason = _ANSWERED
    if rule.answer is not _ALWAYS or source == UNSPECIFIED:
        dad = source == UNSPECIFIED
        defends = dad and rule.profile.defend
        # Every link has all of fe80::/10, so that only a rule for the address itself means it.
        if defends and rule.answer is _ALWAYS and is_link_local(target) and not rule.exact:
            return Verdict(Reason.DAD_ON_LINK, None, rule)
        if rule.answer is not _ALWAYS or defends:
            against = (refuse or _empty_tables)(target, rule, defends)
            if against is not None:
                return Verdict(against, None, rule)
        if dad and not defends:
            return Verdict(Reason.DAD_IGNORED, None, rule)
        if dad:
            reason = _ANSWERED_DAD
    if admit is not None:
        against = admit(eth_source, peer)
        if against is not None:
            return Verdict(against, None, rule)
    return _verdict((reason, advertise(ns, host, rule.profile), rule))


def is_link_local(address: bytes) -> bool:
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def _empty_tables(target: bytes, rule: Match, defends: bool) -> Reason | None:
    """A Refuse of a kernel that forwards, and has neither routes nor neighbours."""
    if rule.answer is Answer.LOCAL:
        return Reason.NOT_LOCAL
    return None if rule.answer is _ALWAYS else Reason.NO_ROUTE


def validate(
    frame: bytes, mac: bytes, match: Callable[[bytes], Match | None]
) -> Solicitation | Reason:
    """7.1.1 whole, and what Ethernet asks before it, of a frame as judge() takes it.

    match: for a target whose rule advertises another MAC than `mac`, that one is ours, too.
    """
    size = len(frame)
    if size == OTHER_VLAN_LEN:
        return Reason.OTHER_VLAN
    (eth_destination, eth_source, length, hop_limit, source, destination, code, target) = _HEADERS(
        frame if size >= OPTIONS_AT else frame.ljust(OPTIONS_AT)
    )
    if eth_source == mac:
        return Reason.OWN_FRAME
    if eth_destination != mac and (
        eth_destination != b"\x33\x33" + destination[12:] or destination[0] != 0xFF
    ):
        rule = None if size < OPTIONS_AT or eth_destination[0] & 1 else match(target)
        if rule is None or rule.profile.lladdr != eth_destination:
            return Reason.OTHER_HOST
    if hop_limit != 255:
        return Reason.BAD_HOP_LIMIT
    if code:
        return Reason.BAD_CODE
    end = 54 + length
    if length < NS_LEN or end > size or size > FRAME_MAX:
        return Reason.BAD_LENGTH
    sllao: bytes | None = None
    at = OPTIONS_AT
    while at < end:
        units = frame[at + 1] if at + 1 < end else 0
        if not units or at + units * 8 > end:
            return Reason.BAD_OPTION
        # Of several SLLAOs the first counts, and no other is looked at, as in Linux.
        if frame[at] == _SLLAO and sllao is None:
            if units != 1:  # 4.6.1: one unit on Ethernet; another names no Ethernet address
                return Reason.BAD_OPTION
            sllao = frame[at + 2 : at + 8]
        at += units * 8
    if _sum(frame[22:end], length):
        return Reason.BAD_CHECKSUM
    if target[0] == 0xFF or target in _NOBODY:
        return Reason.BAD_TARGET
    if source[0] == 0xFF:
        return Reason.BAD_SOURCE
    if not source[0]:
        if source == LOOPBACK or source[:12] == V4_MAPPED:  # Linux drops what comes from these
            return Reason.BAD_SOURCE
        if source == UNSPECIFIED and (sllao or destination != solicited_node_group(target)):
            return Reason.BAD_SOURCE
    return _solicitation((source, target, eth_source, sllao or eth_source))


# Ethernet, IPv6 and ICMPv6 headers and the target: what validate() names.
_HEADERS = struct.Struct("!6s6s6xHxB16s16sxB6x16s").unpack_from
_NOBODY = (UNSPECIFIED, LOOPBACK)


def advertise(ns: Solicitation, host: Host, profile: Profile = DEFAULT_PROFILE) -> bytes:
    """The answer of 86 bytes: 7.2.4 with 7.2.8, and to all nodes if `ns` was for DAD."""
    destination, target, _, peer = ns
    flags = _SOLICITED
    if destination == UNSPECIFIED:
        destination, peer, flags = ALL_NODES, ALL_NODES_MAC, 0
    if profile.router:
        flags |= _ROUTER
    if profile.override:
        flags |= _OVERRIDE
    if profile.source is _FROM_TARGET:
        source = target
    elif isinstance(profile.source, bytes):
        source = profile.source
    else:
        source = target if host.link_local == UNSPECIFIED else host.link_local
    mac = host.mac
    addresses = source + destination
    rest = target + b"\2\1" + (profile.lladdr or mac)
    checksum = -_sum(addresses + rest, NA_LEN + (TYPE_NA << 8) + (flags << 8)) % 0xFFFF
    middle = _NA_MIDDLE(TYPE_NA << 8, checksum, flags << 24)
    return b"".join((peer, mac, _NA_HEAD, addresses, middle, rest))


_NA_HEAD = _ETHERTYPE_IPV6 + struct.pack("!IHBB", 0x60000000, NA_LEN, _ICMPV6, 255)
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
        body += bytes((_SLLAO, 1)) + sllao
    return icmpv6_frame(
        eth_source,
        eth_destination or b"\x33\x33" + destination[12:],
        source,
        destination,
        TYPE_NS,
        body,
    )


def decode_advertisement(frame: bytes) -> Advertisement:
    """Take our own advertisement of 86 bytes apart."""
    flags = frame[58]
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
        checksum_correct=checksum_correct(frame),
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
    checksum = -_sum(source + destination + body, length + (icmp_type << 8)) % 0xFFFF
    return b"%b%b\x86\xdd%b%b%b%b%b" % (
        eth_destination,
        eth_source,
        struct.pack("!IHBB", 0x60000000, length, _ICMPV6, 255),
        source,
        destination,
        struct.pack("!BBH", icmp_type, 0, checksum),
        body,
    )


def solicited_node_group(address: bytes) -> bytes:
    """ff02::1:ffXX:XXXX of the address's last 24 bits (RFC 4291 2.7.1)."""
    return b"\xff\x02" + bytes(9) + b"\x01\xff" + address[13:]


def checksum_correct(frame: bytes) -> bool:
    """Of a frame of one ICMPv6 message, from its Ethernet header to the message's end."""
    return not _sum(frame[22:], len(frame) - 54)


def _sum(data: bytes, more: int) -> int:
    """The one's-complement sum of a message and its pseudo-header (RFC 8200 8.1), by 65535.

    data: addresses and message, an even number of bytes. more: the message's length, and words of
    it that are not in `data`. As 2^16 leaves 1 when divided by 65535, each word of the one large
    number that `data` is counts for itself. 0 stands for 65535, too: data that really sums to 0
    is all zeros, and no message with its pseudo-header is.
    """
    return (int.from_bytes(data, "big") + more + _ICMPV6) % 0xFFFF
