"""Probe of routers and gateways by solicitations, as rdisc6 and ndisc6 send them."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ndxdp.doctor.finding import Finding, note, unseen
from ndxdp.errors import NdxdpError
from ndxdp.ndp.address import solicited_node_group
from ndxdp.ndp.frame import ETH_P_IPV6, FRAME_MAX, OPTIONS_AT
from ndxdp.ndp.message import Fault, solicit
from ndxdp.ndp.resolution import PendingSolicitation, Reply, reply_to
from ndxdp.netlink.links import Link
from ndxdp.rules.address import address_text
from ndxdp.rules.prefix import Prefix
from ndxdp.sockets.cbpf import (
    attach_filter,
    frames_within,
    icmpv6_conditions,
    packet_socket,
    program,
)

_RS, _RA, _NS, _NA = 133, 134, 135, 136
_ALL_ROUTERS = "ff02::2"
_HOPS = 255  # RFC 4861 6.1.2, 7.1.2: a packet with another hop limit is not from this link
_SLLAO, _PREFIX, _MTU = 1, 3, 5
_ICMP6_FILTER = 1  # linux/icmpv6.h
_ANCILLARY = 128  # bytes: one hop limit

_ROUNDS = 3  # MAX_RTR_SOLICITATIONS
_WAIT = 1.0  # seconds for each; routers delay an advertisement up to 0.5 s (RFC 4861 6.2.6)


_WAIT_EACH = 0.5  # seconds for an answer to a solicitation from one of several sources


class Offered(NamedTuple):
    """Prefix of a router advertisement. Lifetimes are in seconds; 2^32 - 1 means for ever."""

    prefix: Prefix
    on_link: bool
    autonomous: bool
    valid: int
    preferred: int


@dataclass(frozen=True, slots=True)
class Router:
    """Router, as described by its advertisement.

    Attributes:
        address: The address of the router.
        lifetime: Seconds as a default router; 0 if it is none.
        managed: Addresses are available by DHCPv6.
        other: Other configuration is available by DHCPv6.
        mtu: The MTU; 0 if the advertisement has none.
        prefixes: The advertised prefixes.
    """

    address: str
    lifetime: int
    managed: bool
    other: bool
    mtu: int
    prefixes: tuple[Offered, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """Result of a probe.

    Attributes:
        interface: The interface.
        problem: Why nothing could be sent; "" if it was.
        routers: The routers that answered.
        gateways: The gateways.
        answered: The MACs of the gateways that answered.
        behind: Prefixes that ndxdp answers for.
        selective: Gateways that answered only another source address than the kernel's, with that
            source and their MAC.
    """

    interface: str
    problem: str
    routers: tuple[Router, ...]
    gateways: tuple[bytes, ...]
    answered: dict[bytes, str]
    behind: tuple[Prefix, ...]
    selective: dict[bytes, tuple[bytes, bytes]]


def gather(
    link: Link, gateways: Iterable[bytes], behind: Iterable[Prefix], sources: Iterable[bytes]
) -> Facts:
    """Send up to three rounds of solicitations, a second each, until all gateways have answered.

    Args:
        link: The interface.
        gateways: The gateways to solicit.
        behind: Prefixes that ndxdp answers for.
        sources: Addresses from which to solicit a gateway that does not answer the kernel's choice.
    """
    gateways = tuple(gateways)
    routers: dict[str, Router] = {}
    answered: dict[bytes, str] = {}
    problem = ""
    try:
        with _socket(link) as opened:
            for _ in range(_ROUNDS):
                _send(
                    opened, link, [each for each in gateways if each not in answered], not routers
                )
                _listen(opened, gateways, routers, answered)
                if routers and len(answered) == len(gateways):
                    break
    except OSError as error:
        problem = error.strerror or str(error)
    found = tuple(routers[address] for address in sorted(routers))
    silent = [] if problem else [each for each in gateways if each not in answered]
    selective = _try_sources(link, silent, tuple(sources)) if silent else {}
    return Facts(link.name, problem, found, gateways, answered, tuple(behind), selective)


def _try_sources(
    link: Link, gateways: list[bytes], sources: tuple[bytes, ...]
) -> dict[bytes, tuple[bytes, bytes]]:
    """Return the first source that each gateway answers, with the gateway's MAC."""
    found = {}
    with contextlib.suppress(NdxdpError, OSError), packet_socket("solicits gateways") as packets:
        packets.bind((link.name, ETH_P_IPV6))
        for gateway in gateways:
            for source in sources:
                reply = solicit_from(packets, link, source, gateway)
                if reply is not None:
                    found[gateway] = source, reply.mac
                    break
    return found


def solicit_from(packets: socket.socket, link: Link, source: bytes, router: bytes) -> Reply | None:
    """Solicit a router from an address, which may be another host's; return its answer, or None.

    The router learns the same neighbour entry of the source from this as from an answer of ndxdp.

    Args:
        packets: A packet socket that is bound to the interface.
        link: The interface.
        source: The source address.
        router: The address to solicit.
    """
    conditions = icmpv6_conditions(_NA)
    attach_filter(packets, program(conditions, last=OPTIONS_AT - 1, keep=FRAME_MAX + 1))
    question = PendingSolicitation(link.mac, source, router)
    packets.send(solicit(link.mac, router, source=source, sllao=link.mac))
    for frame in frames_within(packets, FRAME_MAX + 1, _WAIT_EACH):
        reply = reply_to(question, frame, None)
        if not isinstance(reply, Fault):
            return reply
    return None


def _socket(link: Link) -> socket.socket:
    """Return a raw socket on the interface for advertisements of routers and of neighbours."""
    opened = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    try:
        blocked = bytearray(b"\xff" * 32)
        for kind in (_RA, _NA):
            word, bit = divmod(kind, 32)
            value = struct.unpack_from("=I", blocked, word * 4)[0] & ~(1 << bit)
            struct.pack_into("=I", blocked, word * 4, value)
        opened.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, bytes(blocked))
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.name.encode())
        for option in (socket.IPV6_UNICAST_HOPS, socket.IPV6_MULTICAST_HOPS):
            opened.setsockopt(socket.IPPROTO_IPV6, option, _HOPS)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, link.ifindex)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    except BaseException:
        opened.close()
        raise
    return opened


def _send(opened: socket.socket, link: Link, gateways: Iterable[bytes], routers: bool) -> None:
    """Send solicitations, in which the kernel sets the checksum and the source address."""
    own = bytes((_SLLAO, 1)) + link.mac
    for gateway in gateways:
        group = address_text(solicited_node_group(gateway))
        solicitation = bytes((_NS, 0, 0, 0)) + bytes(4) + gateway + own
        opened.sendto(solicitation, (group, 0, 0, link.ifindex))
    if routers:
        opened.sendto(bytes((_RS, 0, 0, 0)) + bytes(4) + own, (_ALL_ROUTERS, 0, 0, link.ifindex))


def _listen(
    opened: socket.socket,
    gateways: tuple[bytes, ...],
    routers: dict[str, Router],
    answered: dict[bytes, str],
) -> None:
    until = time.monotonic() + _WAIT
    while (left := until - time.monotonic()) > 0:
        opened.settimeout(left)
        try:
            data, ancillary, _, sender = opened.recvmsg(65536, _ANCILLARY)
        except TimeoutError:
            return
        hops = [struct.unpack("=i", value)[0] for _, kind, value in ancillary if len(value) == 4]
        if hops != [_HOPS]:
            continue
        if data[0] == _RA and len(data) >= 16:
            with contextlib.suppress(ValueError):
                address = sender[0].partition("%")[0]
                routers[address] = parse(address, data)
        elif data[0] == _NA and len(data) >= 24 and data[8:24] in gateways:
            with contextlib.suppress(ValueError):
                macs = [value[2:8].hex(":") for kind, value in _options(data[24:]) if kind == 2]
                answered[data[8:24]] = macs[0] if macs else ""
        if routers and len(answered) == len(gateways):
            return


def parse(address: str, data: bytes) -> Router:
    """Parse a router advertisement, which begins with its ICMPv6 type.

    Raises:
        ValueError: An option is malformed.
    """
    flags, lifetime = struct.unpack_from("!BH", data, 5)
    mtu, prefixes = 0, []
    for kind, value in _options(data[16:]):
        if kind == _MTU and len(value) == 8:
            mtu = struct.unpack_from("!I", value, 4)[0]
        elif kind == _PREFIX and len(value) == 32:
            length, how, valid, preferred = struct.unpack_from("!BBII", value, 2)
            if length <= 128:
                prefix = Prefix.around(value[16:32], length)
                prefixes.append(
                    Offered(prefix, bool(how & 0x80), bool(how & 0x40), valid, preferred)
                )
    managed, other = bool(flags & 0x80), bool(flags & 0x40)
    return Router(address, lifetime, managed, other, mtu, tuple(prefixes))


def _options(data: bytes) -> list[tuple[int, bytes]]:
    """Return the type and the whole bytes of each option."""
    found, at = [], 0
    while at < len(data):
        length = data[at + 1] * 8 if at + 1 < len(data) else 0
        if not length or at + length > len(data):
            raise ValueError("malformed option")
        found.append((data[at], data[at : at + length]))
        at += length
    return found


def judge(facts: Facts) -> list[Finding]:
    """Return notes about the gateways and routers that answered, or did not."""
    if facts.problem:
        return [unseen(f"cannot solicit routers: {facts.problem}")]
    found = []
    for gateway in facts.gateways:
        text = address_text(gateway)
        mac = facts.answered.get(gateway)
        if gateway in facts.selective:
            source = address_text(facts.selective[gateway][0])
            found.append(
                note(
                    f"the gateway {text} answers solicitations from {source}, but not from the"
                    " address that the kernel uses"
                )
            )
        elif mac is None:
            found.append(note(f"the gateway {text} answered none of {_ROUNDS} solicitations"))
        else:
            found.append(note(f"the gateway {text} answers{mac and f' with {mac}'}"))
    if not facts.routers:
        found.append(note(f"no router answered {_ROUNDS} solicitations on {facts.interface}"))
    for router in facts.routers:
        found += _router(router)
    found += _behind(facts)
    return found


def _router(router: Router) -> list[Finding]:
    words = [f"default for {router.lifetime} s" if router.lifetime else "not a default router"]
    words += [f"MTU {router.mtu}"] if router.mtu else []
    words += ["addresses by DHCPv6"] if router.managed else []
    words += ["more by DHCPv6"] if router.other and not router.managed else []
    found = [note(f"router {router.address}: {', '.join(words)}")]
    for each in router.prefixes:
        how = ["on-link" if each.on_link else "not on-link"]
        how += ["autonomous"] if each.autonomous else []
        life = "for ever" if each.valid == 0xFFFFFFFF else f"for {each.valid} s"
        found.append(note(f"router {router.address}: {each.prefix} {', '.join(how)}, {life}"))
    return found


def _behind(facts: Facts) -> list[Finding]:
    """Compare the prefixes that ndxdp answers for with the on-link prefixes of the routers."""
    on_link = [each.prefix for router in facts.routers for each in router.prefixes if each.on_link]
    if not on_link:
        return []
    found = []
    for prefix in facts.behind:
        around = [
            str(each)
            for each in on_link
            if each.length <= prefix.length and Prefix.around(prefix.address, each.length) == each
        ]
        if around:
            found.append(note(f"{prefix} is in {around[0]}, which is on-link: the router solicits"))
        else:
            found.append(
                note(
                    f"{prefix} is in no advertised on-link prefix: if it is routed to this host,"
                    " no responder is needed"
                )
            )
    return found
