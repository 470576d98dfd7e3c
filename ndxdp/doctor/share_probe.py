"""Probe for a node that answers for every address on a link of a share."""

from __future__ import annotations

import contextlib
import hashlib

from ndxdp.doctor.finding import Finding, failure
from ndxdp.doctor.share_members import Member
from ndxdp.errors import NdxdpError
from ndxdp.ndp.address import UNSPECIFIED
from ndxdp.ndp.frame import ETH_P_IPV6, TYPE_NA
from ndxdp.ndp.message import NeighborAdvertisement, parse_advertisement, solicit
from ndxdp.netlink.addresses import own_addresses
from ndxdp.rules.prefix import Prefix
from ndxdp.sockets.cbpf import (
    attach_filter,
    frames_within,
    icmpv6_conditions,
    packet_socket,
    program,
)
from ndxdp.sockets.multicast import allmulti

_WAIT = 0.5  # seconds
_LENGTH = 78  # bytes of an advertisement without options
_FREE_BITS = 32  # a prefix needs so many, or an address of it may be a node's by chance


def answerer(member: Member, prefix: Prefix) -> bytes | None:
    """Return the MAC of a node that answers for an address that nobody has; None if nobody does.

    The address is the same in each probe of an interface, because a daemon learns one that is
    answered for.

    Args:
        member: The interface to solicit on.
        prefix: The prefix of the address.
    """
    free = 128 - prefix.length
    if free < _FREE_BITS:
        return None
    chance = int.from_bytes(hashlib.sha256(member.mac + prefix.address).digest(), "big")
    number = int.from_bytes(prefix.address, "big") | chance % (1 << free)
    target = number.to_bytes(16, "big")
    with contextlib.suppress(NdxdpError, OSError), contextlib.ExitStack() as opened:
        own = [each.address for each in own_addresses(member.ifindex) if each.link_local]
        both = opened.enter_context(packet_socket("looks for a node that answers for all"))
        attach_filter(both, program(icmpv6_conditions(TYPE_NA), last=_LENGTH - 1, keep=1500))
        both.bind((member.name, ETH_P_IPV6))
        allmulti(both, member.ifindex)
        source = own[0] if own else UNSPECIFIED
        both.send(solicit(member.mac, target, source=source, sllao=member.mac if own else None))
        for frame in frames_within(both, 1500, _WAIT):
            answer = parse_advertisement(frame)
            if isinstance(answer, NeighborAdvertisement) and answer.target == target:
                return answer.eth_source
    return None


def answers_for_all(name: str, mac: bytes, prefix: Prefix) -> Finding:
    """Return the finding about a node that answers for every address."""
    return failure(
        f"{mac.hex(':')} answers on {name} for an address of {prefix} that nobody has",
        "if it does so for all of them, no address is free: hosts on the other links of the share"
        " get none, because their DAD fails. Stop the proxy there, or the rule for all of the"
        " prefix; if it is the provider's, ask for a routed prefix",
        f"ip -6 neighbour show dev {name}",
    )
