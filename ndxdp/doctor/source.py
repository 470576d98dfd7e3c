"""The host's addresses, and from which one the kernel sends (RFC 6724)."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ndxdp.doctor import sysctl
from ndxdp.doctor.finding import Finding, Level, failure, note, warning
from ndxdp.wire.fib import DefaultRoute
from ndxdp.wire.netlink import OwnAddress

# IFA_F_*, linux/if_addr.h
_TEMPORARY, _OPTIMISTIC, _DADFAILED, _DEPRECATED, _TENTATIVE = 0x01, 0x04, 0x08, 0x20, 0x40

INTERNET = socket.inet_pton(socket.AF_INET6, "2000::1")
"""Nothing is sent there: it stands for every global address."""

_DISCARD = 9  # a port: connecting needs one, though nothing is sent

# RFC 6724 2.1 as the kernel has it (net/ipv6/addrlabel.c), the most specific first.
_LABELS = [
    (ipaddress.IPv6Network(prefix), label)
    for prefix, label in (
        ("::1/128", 0),
        ("::ffff:0:0/96", 4),
        ("::/96", 3),
        ("2001::/32", 6),
        ("2001:10::/28", 7),
        ("3ffe::/16", 12),
        ("2002::/16", 2),
        ("fec0::/10", 11),
        ("fc00::/7", 5),
        ("::/0", 1),
    )
]


class Choice(NamedTuple):
    """What the kernel sends from, 16 bytes, to whom; source None if it would not send."""

    towards: str
    destination: bytes
    source: bytes | None


@dataclass(frozen=True, slots=True)
class Facts:
    """addresses: of the interface. temporary: they are preferred to others (use_tempaddr)."""

    interface: str
    addresses: tuple[OwnAddress, ...]
    choices: tuple[Choice, ...]
    temporary: bool = False


def gather(
    interface: str, ifindex: int, routes: list[DefaultRoute], addresses: list[OwnAddress]
) -> Facts:
    choices = []
    for gateway in sorted({route.gateway for route in routes if route.gateway}):
        text = socket.inet_ntop(socket.AF_INET6, gateway)
        choices.append(Choice(f"the gateway {text}", gateway, _source(gateway, ifindex)))
    if routes:
        choices.append(Choice("the Internet", INTERNET, _source(INTERNET, 0)))
    temporary = sysctl.conf(interface, "use_tempaddr") > 1
    return Facts(interface, tuple(addresses), tuple(choices), temporary)


def _source(destination: bytes, scope: int) -> bytes | None:
    """What the kernel would choose. Connecting a datagram socket sends nothing."""
    text = socket.inet_ntop(socket.AF_INET6, destination)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((text, _DISCARD, 0, scope))
        except OSError:
            return None
        chosen = asking.getsockname()[0].partition("%")[0]
    return socket.inet_pton(socket.AF_INET6, chosen)


def judge(facts: Facts) -> list[Finding]:
    found = []
    by_address = {own.address: own for own in facts.addresses}
    for own in facts.addresses:
        text = socket.inet_ntop(socket.AF_INET6, own.address)
        if own.flags & _DADFAILED:
            found.append(
                failure(
                    f"{text} on {facts.interface} is a duplicate (dadfailed)",
                    "another host has it, or answers for it: the kernel does not use it",
                    f"ip -6 address delete {text}/{own.length} dev {facts.interface}",
                )
            )
        elif own.flags & _TENTATIVE and not own.flags & _OPTIMISTIC:
            found.append(note(f"{text} is tentative: not used until nobody has objected"))
    for choice in facts.choices:
        found.append(_judge_choice(facts, choice, by_address))
    return found


def _judge_choice(facts: Facts, choice: Choice, by_address: dict[bytes, OwnAddress]) -> Finding:
    if choice.source is None:
        return failure(
            f"there is no source address towards {choice.towards}",
            f"no address of {facts.interface} or of another interface is usable",
            f"ip -6 address show dev {facts.interface}",
        )
    text = socket.inet_ntop(socket.AF_INET6, choice.source)
    own = by_address.get(choice.source)
    if own is None:
        return note(
            f"towards {choice.towards} the host sends from {text}, an address of another interface"
        )
    if own.flags & _DEPRECATED:
        return warning(
            f"towards {choice.towards} the host sends from {text}, which is deprecated",
            "there is no preferred one: it was taken out of use, or no advertisement renewed it",
            f"ip -6 address change {text}/{own.length} dev {facts.interface}"
            " preferred_lft forever valid_lft forever",
        )
    why = reason(own, facts.addresses, choice.destination, temporary=facts.temporary)
    if why == _RULES[-1] and not own.link_local:
        return Finding(
            Level.NOTE,
            f"towards {choice.towards} the host sends from {text}: {why}",
            "that order changes with each boot and each change; what keeps one address preferred is"
            " [interface.addresses] in a file for `ndxdp run -c`",
        )
    return note(f"towards {choice.towards} the host sends from {text}{why and f': {why}'}")


def reason(
    chosen: OwnAddress,
    addresses: Iterable[OwnAddress],
    destination: bytes,
    *,
    temporary: bool = False,
) -> str:
    """The rule of RFC 6724 5 that preferred it to the last rival; "" without rivals."""
    last = 0
    rivals = False
    for other in addresses:
        if other.address == chosen.address or other.flags & (_DADFAILED | _TENTATIVE):
            continue
        rivals = True
        ours = _ranks(chosen, destination, temporary)
        theirs = _ranks(other, destination, temporary)
        differing = [
            number for number, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b
        ]
        if not differing:
            last = len(_RULES) - 1
        elif ours[differing[0]] < theirs[differing[0]]:
            return "the route names it"
        else:
            last = max(last, differing[0])
    return _RULES[last] if rivals else ""


_RULES = (
    "the only one of its scope",
    "the others are deprecated",
    "of the same label (RFC 6724 2.1)",
    "temporary or not, as use_tempaddr wants it",
    "its prefix has most in common with the destination",
    "as good as the others, and first in the kernel's list",
)


def _ranks(own: OwnAddress, destination: bytes, temporary: bool) -> tuple[int, ...]:
    """The higher the better, by rules 2, 3, 6, 7, 8; all are of the outgoing interface."""
    a, b = int.from_bytes(own.address, "big"), int.from_bytes(destination, "big")
    common = min(128 - (a ^ b).bit_length(), own.length)
    to_link = ipaddress.IPv6Address(destination).is_link_local
    return (
        int(own.link_local == to_link),
        int(not own.flags & _DEPRECATED),
        int(_label(own.address) == _label(destination)),
        int(bool(own.flags & _TEMPORARY) == temporary),
        common,
    )


def _label(address: bytes) -> int:
    parsed = ipaddress.IPv6Address(address)
    return next(label for prefix, label in _LABELS if parsed in prefix)
