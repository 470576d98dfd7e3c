"""Neighbor Discovery on the wire: the decision and the answer, bytes in, bytes out.

This is the executable specification of bpf/ndp_responder.c: the same checks in the same order,
the same reasons, the same bytes. It knows no socket and no kernel. Section numbers are
RFC 4861's unless they say otherwise; frames are Ethernet frames without FCS, everything in them
in network byte order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from ndxdp.ndp.address import LOOPBACK, UNSPECIFIED, V4_MAPPED, is_link_local, solicited_node_group
from ndxdp.ndp.frame import (
    FRAME_MAX,
    NS_LEN,
    OPTIONS_AT,
    OTHER_VLAN_LEN,
    SLLAO,
    VLAN_ID,
    is_solicitation,
    message_sum,
    untagged,
)
from ndxdp.ndp.message import Host, Solicitation, advertise
from ndxdp.ndp.profile import DEFAULT_PROFILE, Answer, Profile
from ndxdp.ndp.reason import Reason


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
    if inner is not frame and int.from_bytes(frame[14:16], "big") & VLAN_ID:
        return Verdict(Reason.OTHER_VLAN)
    return judge(inner, host, match, admit, refuse)


# A member of an Enum takes 75 ns to look up, the constructor of a NamedTuple 250 ns; the
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
        if frame[at] == SLLAO and sllao is None:
            if units != 1:  # 4.6.1: one unit on Ethernet; another names no Ethernet address
                return Reason.BAD_OPTION
            sllao = frame[at + 2 : at + 8]
        at += units * 8
    if message_sum(frame[22:end], length):
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
