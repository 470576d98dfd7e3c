"""Two interfaces of a share that are on one link, as two ports of one switch: a loop.

The relayed router advertisements come back by the upstream interface then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping

from ndxdp.doctor.finding import Finding, failure, warning
from ndxdp.doctor.share_members import Member
from ndxdp.errors import NdxdpError
from ndxdp.ndp.frame import ETH_P_IPV6, TYPE_NS
from ndxdp.ndp.message import solicit
from ndxdp.rules.address import address_text, mac_text
from ndxdp.sockets.cbpf import (
    attach_filter,
    frames_within,
    icmpv6_conditions,
    packet_socket,
    program,
)
from ndxdp.sockets.multicast import allmulti

_WAIT = 0.5  # seconds
_LENGTH = 78  # bytes of a solicitation without options

_WHY = (
    "hosts there need no share, and hear every advertisement twice; so does this host, which may"
    " take itself as its router. Put the two ports into different switches or VLANs"
)


def seen(
    upstream: Member,
    member: Member,
    hosts: Mapping[bytes, bytes],
    routers: Iterable[bytes],
    gateways: Mapping[bytes, str],
) -> Finding | None:
    """Return a finding if two interfaces of a share seem to be on the same link.

    Args:
        upstream: The upstream interface.
        member: A downstream interface.
        hosts: The MACs of the learned hosts there, by address.
        routers: The link-local addresses (16 bytes) of the routers that were heard upstream.
        gateways: The gateways (16 bytes) of default routes by the upstream interface that are this
            host's own addresses, with the interface that has the address.
    """
    here = dict(member.macs or {}) | dict(hosts)
    there = dict(upstream.macs or {})
    same = sorted(set(here.values()) & set(there.values()))
    own = upstream.mac if upstream.mac != member.mac else b""
    itself = next((each for each, name in gateways.items() if name == member.name), None)
    router = next((each for each in routers if each in here and each in there), None)
    if itself is not None:
        text = address_text(itself)
        return failure(
            f"the default route of {upstream.name} leads to {text}, which is this host itself, on"
            f" {member.name}: the two interfaces are one link",
            _WHY,
            f"ip -6 route delete default via {text} dev {upstream.name}",
        )
    if own and (own in here.values() or member.mac in there.values()):
        return failure(
            f"{upstream.name} and {member.name} are one link: one hears this host's own frames by"
            " the other",
            _WHY,
            f"ip -6 neighbour show dev {member.name}",
        )
    if not same:
        return None
    how = f"both have the neighbour {mac_text(same[0])}"
    if router is not None and here[router] == there[router]:
        how = f"{member.name} hears the router {address_text(router)} of {upstream.name}"
    return warning(
        f"{upstream.name} and {member.name} seem to be one link: {how}",
        f"{_WHY}. A node that has just moved looks the same, and --probe tells",
        f"ndxdp doctor {upstream.name} --probe",
    )


def reaches(upstream: Member, member: Member) -> bool:
    """Return whether a solicitation that leaves upstream arrives on a downstream interface.

    The solicitation is for a link-local address that no host has: 64 random bits.

    Args:
        upstream: The upstream interface.
        member: The downstream interface.
    """
    target = b"\xfe\x80" + bytes(6) + os.urandom(8)
    frame = solicit(upstream.mac, target)
    with contextlib.suppress(NdxdpError, OSError), contextlib.ExitStack() as opened:
        sends = opened.enter_context(packet_socket("looks for a loop"))
        sends.bind((upstream.name, ETH_P_IPV6))
        hears = opened.enter_context(packet_socket("looks for a loop"))
        attach_filter(hears, program(icmpv6_conditions(TYPE_NS), last=_LENGTH - 1, keep=_LENGTH))
        hears.bind((member.name, ETH_P_IPV6))
        allmulti(hears, member.ifindex)
        sends.send(frame)
        return any(target in frame for frame in frames_within(hears, _LENGTH, _WAIT))
    return False


def finding(upstream: str, downstream: str) -> Finding:
    """Return the finding about two interfaces that are on one link."""
    return failure(
        f"{upstream} and {downstream} are one link: a frame that left by {upstream} arrived by"
        f" {downstream}",
        _WHY,
        f"ip -6 neighbour show dev {downstream}",
    )
