"""Probe for a loop: a frame that leaves by one interface of a share must not arrive by another."""

from __future__ import annotations

import contextlib
import os
import select
import time

from ndxdp.doctor.finding import Finding, failure
from ndxdp.doctor.share_members import Member
from ndxdp.errors import NdxdpError
from ndxdp.ndp.frame import ETH_P_IPV6
from ndxdp.ndp.message import solicit
from ndxdp.sockets.cbpf import attach_filter, icmpv6_conditions, packet_socket, program
from ndxdp.sockets.multicast import allmulti

_NS = 135
_WAIT = 0.5  # seconds
_LENGTH = 78  # bytes of a solicitation without options


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
        attach_filter(hears, program(icmpv6_conditions(_NS), last=_LENGTH - 1, keep=_LENGTH))
        hears.bind((member.name, ETH_P_IPV6))
        allmulti(hears, member.ifindex)
        sends.send(frame)
        until = time.monotonic() + _WAIT
        while (left := until - time.monotonic()) > 0:
            if not select.select([hears], [], [], left)[0]:
                break
            if target in hears.recv(_LENGTH):
                return True
    return False


def finding(upstream: str, downstream: str) -> Finding:
    """Return the finding about two interfaces that are on one link."""
    return failure(
        f"{upstream} and {downstream} are one link: a frame that left by {upstream} arrived by"
        f" {downstream}",
        "hosts there need no share, and hear every advertisement twice; so does this host, which"
        " may take itself as its router. Put the two ports into different switches or VLANs",
        "ip -6 neighbour show dev " + downstream,
    )
