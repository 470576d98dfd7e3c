"""The decision about one frame: validate the solicitation, apply the rule, build the answer. Pure.

This module is the executable specification of bpf/ndp_responder.c: both make the same checks in the
same order, give the same reasons and send the same bytes. Section numbers are those of RFC 4861
unless another RFC is named. Frames are bytes as in frame.py: addresses have 16 bytes, MACs 6, and
all fields are in network byte order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from ndxdp.ndp.address import (
    LOOPBACK,
    UNSPECIFIED,
    V4_MAPPED,
    is_link_local,
    solicited_node_group,
)
from ndxdp.ndp.frame import (
    FRAME_MAX,
    NS_LEN,
    OPTIONS_AT,
    OTHER_VLAN_LEN,
    SLLAO,
    SOURCE_AT,
    TYPE_AT,
    is_solicitation,
    message_sum,
    unpack_headers,
    untagged,
    vlan_of,
)
from ndxdp.ndp.message import Host, Solicitation, advertise
from ndxdp.ndp.profile import DEFAULT_PROFILE, Answer, Profile
from ndxdp.ndp.reason import Reason


@dataclass(frozen=True, slots=True)
class Match:
    """The most specific rule of a target, reduced to what the decision needs.

    Attributes:
        answer: When the rule answers.
        profile: How the rule answers.
        owned: True if the host or its gateway owns the target.
        expired: True if the rule is dynamic and the heartbeat of its daemon has stopped.
        rule_class: The number of the rule's class, by which the caller counts.
        dev: Patterns of the interfaces that a route may leave by; () for any interface.
        exact: True for a rule of the target alone, False for a rule of a wider prefix.
        leased: True if the rule answers only until the host's lease lapses.
    """

    answer: Answer
    profile: Profile = DEFAULT_PROFILE
    owned: bool = False
    expired: bool = False
    rule_class: int = 0
    dev: tuple[str, ...] = ()
    exact: bool = False
    leased: bool = False


Refuse = Callable[[bytes, Match, bool], Reason | None]
"""Returns the reason why the kernel's tables rule out an answer, None if they do not.

The arguments are the target (16 bytes), its rule, and whether the answer would defend the target
against DAD."""

Admit = Callable[[bytes, bytes], Reason | None]
"""Charges an answer to the limits; see Limiter.charge()."""

Lapsed = Callable[[], bool]
"""Returns True if the host's lease has lapsed at the time of the call."""


class Verdict(NamedTuple):
    """The decision about a frame.

    Attributes:
        reason: The reason.
        reply: The frame of the advertisement; None if the reason is no answer.
        rule: The rule that matched; None without one, or if the decision was made before.
    """

    reason: Reason
    reply: bytes | None = None
    rule: Match | None = None


def decide(
    frame: bytes,
    host: Host,
    match: Callable[[bytes], Match | None],
    admit: Admit | None = None,
    refuse: Refuse | None = None,
    lapsed: Lapsed | None = None,
) -> Verdict:
    """Decide about one frame, which may have a VLAN tag.

    A tag with VLAN 0 is only a priority (IEEE 802.1Q), so that the frame is judged as if it had no
    tag. A frame that is not answered goes on to the kernel; with RATE_LIMITED it is dropped.

    Args:
        frame: The frame.
        host: The interface that answers.
        match: Returns the most specific rule of a target (16 bytes), None without one.
        admit: Charges an answer to the limits; None for no limits.
        refuse: Asks the kernel's tables; None for tables without routes and neighbours.
        lapsed: Reads the clock for a leased rule; None for a host without a lease.
    """
    inner = untagged(frame)
    if not is_solicitation(inner):
        return Verdict(Reason.NOT_NS)
    if inner is not frame and vlan_of(frame):
        return Verdict(Reason.OTHER_VLAN)
    return judge(inner, host, match, admit, refuse, lapsed)


_NO_TARGETS = (UNSPECIFIED, LOOPBACK)

# Looking up the member of an Enum takes 75 ns, and the constructor of a NamedTuple 250 ns; the
# userspace path has 5 µs for a frame.
_NEVER, _ALWAYS = Answer.NEVER, Answer.ALWAYS
_ANSWERED, _ANSWERED_DAD = Reason.ANSWERED, Reason.ANSWERED_DAD
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
    lapsed: Lapsed | None,
) -> Verdict:
    """Decide about an untagged frame that is_solicitation() accepts.

    Args:
        frame: The frame, or OTHER_VLAN_LEN bytes of a solicitation in another VLAN.
        host: As in decide().
        match: As in decide().
        admit: As in decide().
        refuse: As in decide().
        lapsed: As in decide().
    """
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
    if rule.leased and (lapsed is None or lapsed()):
        return Verdict(Reason.LAPSED, None, rule)
    reason = _ANSWERED
    if rule.answer is not _ALWAYS or source == UNSPECIFIED:
        dad = source == UNSPECIFIED
        defends = dad and rule.profile.defend
        # fe80::/10 is on-link at every interface, so a wider rule does not mean this address.
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


def _empty_tables(target: bytes, rule: Match, defends: bool) -> Reason | None:
    """Return the reason of a kernel that forwards and has neither routes nor neighbours."""
    if rule.answer is Answer.LOCAL:
        return Reason.NOT_LOCAL
    return None if rule.answer is _ALWAYS else Reason.NO_ROUTE


def validate(
    frame: bytes, mac: bytes, match: Callable[[bytes], Match | None]
) -> Solicitation | Reason:
    """Parse and validate a solicitation: first the MACs, then all checks of section 7.1.1.

    Args:
        frame: As in judge().
        mac: The interface's MAC.
        match: As in decide(). A frame to a MAC that the target's rule advertises in the TLLAO
            counts as sent to this host.

    Returns:
        The solicitation, or the reason why it is ignored.
    """
    size = len(frame)
    if size == OTHER_VLAN_LEN:
        return Reason.OTHER_VLAN
    (eth_destination, eth_source, length, hop_limit, source, destination, code, target) = (
        unpack_headers(frame if size >= OPTIONS_AT else frame.ljust(OPTIONS_AT))
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
    end = TYPE_AT + length
    if length < NS_LEN or end > size or size > FRAME_MAX:
        return Reason.BAD_LENGTH
    sllao: bytes | None = None
    at = OPTIONS_AT
    while at < end:
        units = frame[at + 1] if at + 1 < end else 0
        if not units or at + units * 8 > end:
            return Reason.BAD_OPTION
        # The first of several SLLAOs counts, and the others are not checked, as in Linux.
        if frame[at] == SLLAO and sllao is None:
            if units != 1:  # A MAC has one unit of 8 bytes (4.6.1).
                return Reason.BAD_OPTION
            sllao = frame[at + 2 : at + 8]
        at += units * 8
    if message_sum(frame[SOURCE_AT:end], length):
        return Reason.BAD_CHECKSUM
    if target[0] == 0xFF or target in _NO_TARGETS:
        return Reason.BAD_TARGET
    if source[0] == 0xFF:
        return Reason.BAD_SOURCE
    if not source[0]:
        # Linux drops packets from these sources before Neighbor Discovery (ip6_rcv_core()).
        if source == LOOPBACK or source[:12] == V4_MAPPED:
            return Reason.BAD_SOURCE
        if source == UNSPECIFIED and (sllao or destination != solicited_node_group(target)):
            return Reason.BAD_SOURCE
    return _solicitation((source, target, eth_source, sllao or eth_source))
