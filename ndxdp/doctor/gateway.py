"""The default gateways, and what the kernel's neighbour table says of them."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import NamedTuple

from ndxdp.doctor.finding import Finding, failure, note, warning
from ndxdp.policy import Prefix
from ndxdp.wire import netlink
from ndxdp.wire.fib import DefaultRoute, NudState
from ndxdp.wire.netlink import Neighbour, OwnAddress

_LINK_LOCAL = Prefix(b"\xfe\x80" + bytes(14), 10)


class Gateway(NamedTuple):
    """address: 16 bytes. within: it is in a prefix of the interface's addresses."""

    address: bytes
    neighbour: Neighbour
    within: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """own: a global address of the interface, None without one."""

    interface: str
    gateways: tuple[Gateway, ...]
    own: bytes | None


def gather(
    interface: str, ifindex: int, routes: list[DefaultRoute], addresses: list[OwnAddress]
) -> Facts:
    prefixes = [Prefix.around(own.address, own.length) for own in addresses]
    found = tuple(
        Gateway(
            address,
            netlink.neighbour(ifindex, address),
            any(Prefix.around(address, prefix.length) == prefix for prefix in prefixes),
        )
        for address in sorted({route.gateway for route in routes if route.gateway})
    )
    own = next((own.address for own in addresses if not own.link_local), None)
    return Facts(interface, found, own)


def judge(facts: Facts) -> list[Finding]:
    return [_judge_one(facts, gateway) for gateway in facts.gateways]


def _judge_one(facts: Facts, gateway: Gateway) -> Finding:
    text = socket.inet_ntop(socket.AF_INET6, gateway.address)
    state, mac = gateway.neighbour
    if state is NudState.FAILED:
        source = f"-s {socket.inet_ntop(socket.AF_INET6, facts.own)} " if facts.own else ""
        return failure(
            f"the gateway {text} does not answer on {facts.interface}",
            "it is away, or ignores whom the kernel asks from; if it answers this address, let"
            " ndxdp ask from there: [interface.gateway]",
            f"ndisc6 {source}{text} {facts.interface}",
        )
    if state is NudState.PERMANENT:
        return warning(
            f"the entry of the gateway {text} is permanent",
            "when the gateway's MAC changes, at a failover, this host is cut off",
            f"ip -6 neighbour change {text} dev {facts.interface} nud stale",
        )
    known = f", {mac.hex(':')}" if mac else ""
    is_global = Prefix.around(gateway.address, _LINK_LOCAL.length) != _LINK_LOCAL
    outside = ", outside of the interface's prefixes" if is_global and not gateway.within else ""
    words = "not asked for yet" if state is NudState.NONE else state.name.lower()
    return note(f"gateway {text}: {words}{known}{outside}")
