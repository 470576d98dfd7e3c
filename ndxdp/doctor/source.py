"""Addresses of the host, and the source address that the kernel selects (RFC 6724)."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ndxdp.doctor.finding import Finding, Level, failure, note, warning
from ndxdp.netlink import sysctl
from ndxdp.netlink.addresses import OwnAddress
from ndxdp.netlink.fib import DefaultRoute
from ndxdp.rules.address import address_text

# IFA_F_*, linux/if_addr.h
_TEMPORARY, _OPTIMISTIC, _DADFAILED, _DEPRECATED, _TENTATIVE = 0x01, 0x04, 0x08, 0x20, 0x40
_MANAGETEMPADDR, _STABLE_PRIVACY = 0x100, 0x800

INTERNET = socket.inet_pton(socket.AF_INET6, "2000::1")
"""Example of a global address, to which doctor sends nothing."""

_DISCARD = 9  # port for connect(), which sends nothing

# Labels of RFC 6724 2.1 as in the kernel (net/ipv6/addrlabel.c), the most specific prefix first.
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
    """Source address that the kernel selects for a destination.

    Attributes:
        towards: The destination in words.
        destination: The destination, 16 bytes.
        source: The source, 16 bytes; None if the kernel refuses to send.
        error: The errno of connect() in that case.
    """

    towards: str
    destination: bytes
    source: bytes | None
    error: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """Addresses of an interface.

    Attributes:
        interface: The interface.
        addresses: Its addresses.
        choices: The source address for each gateway and for the Internet.
        temporary: The kernel prefers temporary addresses (use_tempaddr).
        mac: The MAC, 6 bytes; b"" if not known.
        generation: The method by which the kernel makes addresses (addr_gen_mode).
        kept: The addresses (16 bytes) that ndxdp keeps deprecated.
    """

    interface: str
    addresses: tuple[OwnAddress, ...]
    choices: tuple[Choice, ...]
    temporary: bool = False
    mac: bytes = b""
    generation: int = 0
    kept: frozenset[bytes] = frozenset()


def gather(
    interface: str,
    ifindex: int,
    routes: list[DefaultRoute],
    addresses: list[OwnAddress],
    mac: bytes = b"",
    kept: frozenset[bytes] = frozenset(),
) -> Facts:
    """Collect the addresses of an interface, and the source address for each destination.

    Args:
        interface: The name of the interface.
        ifindex: Its index.
        routes: The default routes by the interface.
        addresses: The addresses of the interface.
        mac: Its MAC, 6 bytes; b"" if not known.
        kept: The addresses (16 bytes) that ndxdp keeps deprecated.
    """
    choices = []
    for gateway in sorted({route.gateway for route in routes if route.gateway}):
        text = address_text(gateway)
        choices.append(Choice(f"the gateway {text}", gateway, *_source(gateway, ifindex)))
    # Expired routes have a finding of their own.
    if any(not route.has_expired for route in routes):
        choices.append(Choice("the Internet", INTERNET, *_source(INTERNET, 0)))
    temporary = sysctl.conf(interface, "use_tempaddr") > 1
    generation = sysctl.conf(interface, "addr_gen_mode")
    return Facts(interface, tuple(addresses), tuple(choices), temporary, mac, generation, kept)


def _source(destination: bytes, scope: int) -> tuple[bytes | None, int]:
    """Return the source address that the kernel would select, or None and the errno.

    Connecting a datagram socket sends nothing.
    """
    text = address_text(destination)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((text, _DISCARD, 0, scope))
        except OSError as error:
            return None, error.errno or 0
        chosen = asking.getsockname()[0].partition("%")[0]
    return socket.inet_pton(socket.AF_INET6, chosen), 0


def judge(facts: Facts) -> list[Finding]:
    """Return findings about unusable addresses, and about the source for each destination."""
    found = []
    by_address = {own.address: own for own in facts.addresses}
    for own in facts.addresses:
        text = address_text(own.address)
        if own.flags & _DADFAILED:
            found.append(
                failure(
                    f"{text} on {facts.interface} is a duplicate (dadfailed)",
                    "another host has the address, or answers for it: the kernel does not use it",
                    f"ip -6 address delete {text}/{own.length} dev {facts.interface}",
                )
            )
        elif own.flags & _TENTATIVE and not own.flags & _OPTIMISTIC:
            found.append(
                note(f"{text} is tentative: unusable until duplicate address detection has ended")
            )
    found += _generated(facts)
    deprecated = _deprecated(facts)
    found += deprecated
    for choice in facts.choices:
        found.append(_judge_choice(facts, choice, by_address, all_deprecated=bool(deprecated)))
    return found


def _generated(facts: Facts) -> list[Finding]:
    """Return a note about each address of a router's prefix: made from the MAC, or not."""
    found = []
    owned = {own.address for own in facts.addresses}
    for own in facts.addresses:
        # Addresses that the kernel makes are `mngtmpaddr`; temporary ones (RFC 8981) derive from
        # them.
        if not own.flags & _MANAGETEMPADDR or own.length != 64 or len(facts.mac) != 6:
            continue
        text = address_text(own.address)
        expected = eui64(own.address, facts.mac)
        if own.address == expected:
            found.append(
                note(f"{text} is made from the prefix and the MAC of {facts.interface} (EUI-64)")
            )
        elif own.flags & _STABLE_PRIVACY and expected not in owned:
            setting = sysctl.setting(facts.interface, "addr_gen_mode", 0)
            found.append(
                note(
                    f"{text} is a stable privacy address (addr_gen_mode is {facts.generation}),"
                    f" not made from the MAC of {facts.interface}",
                    "the EUI-64 address of this host, which some providers expect, is"
                    f" {address_text(expected)}; with addr_gen_mode 0 the next"
                    " router advertisement adds it",
                    sysctl.cure(setting) if facts.generation else "",
                )
            )
    return found


def eui64(address: bytes, mac: bytes) -> bytes:
    """Return the address of a 64-bit prefix that is made from a MAC (RFC 4291 appendix A)."""
    return address[:8] + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:6]


def _deprecated(facts: Facts) -> list[Finding]:
    """Return a warning if no global address of the interface is preferred."""
    usable = [own for own in facts.addresses if not own.link_local and own.is_usable]
    if not usable or not all(own.flags & _DEPRECATED for own in usable):
        return []
    texts = [address_text(own.address) for own in usable]
    chosen = {choice.source for choice in facts.choices}
    best = next((own for own in usable if own.address in chosen), usable[0])
    if len(texts) > 1:
        what = f"all {len(texts)} addresses of {facts.interface} are deprecated: {', '.join(texts)}"
    else:
        what = f"the only address of {facts.interface} is deprecated: {texts[0]}"
    if any(own.address in facts.kept for own in usable):
        return [
            warning(
                what,
                "ndxdp keeps them deprecated, and no address matches `preferred` in"
                " [interface.addresses]: add an address of the interface there, then reload",
                "ndxdp status",
            )
        ]
    return [
        warning(
            what,
            "no router advertisement renewed them, or the administrator deprecated them: the host"
            " sends from a deprecated address, or from one of another interface, to which answers"
            " may not find the way",
            _prefer(facts.interface, best),
        )
    ]


def _prefer(interface: str, own: OwnAddress) -> str:
    text = address_text(own.address)
    return (
        f"ip -6 address change {text}/{own.length} dev {interface}"
        " preferred_lft forever valid_lft forever"
    )


def _judge_choice(
    facts: Facts, choice: Choice, by_address: dict[bytes, OwnAddress], *, all_deprecated: bool
) -> Finding:
    if choice.source is None:
        return _no_source(facts, choice)
    text = address_text(choice.source)
    own = by_address.get(choice.source)
    if own is None:
        return note(
            f"towards {choice.towards} the host sends from {text}, an address of another interface"
        )
    if own.flags & _DEPRECATED:
        what = f"towards {choice.towards} the host sends from {text}, which is deprecated"
        if all_deprecated:
            return note(what)
        return warning(
            what,
            "the route selects it, or no preferred address has the required scope",
            _prefer(facts.interface, own),
        )
    if own.link_local and choice.destination == INTERNET:
        return failure(
            f"towards the Internet the host sends from {text}, a link-local address, which no"
            " router forwards",
            "no interface of this host has a global address",
            f"ip -6 address show scope global dev {facts.interface}",
        )
    why = reason(own, facts.addresses, choice.destination, temporary=facts.temporary)
    if why == _RULES[-1] and not own.link_local:
        return Finding(
            Level.NOTE,
            f"towards {choice.towards} the host sends from {text}: {why}",
            "the order of the list changes with each boot and each change; [interface.addresses] in"
            " a file for `ndxdp run -c` keeps one address preferred",
        )
    return note(f"towards {choice.towards} the host sends from {text}{why and f': {why}'}")


def _no_source(facts: Facts, choice: Choice) -> Finding:
    """Return a finding about a missing source address, or a route that is missing or refuses."""
    if choice.error == errno.EADDRNOTAVAIL:
        return failure(
            f"there is no source address towards {choice.towards}",
            f"neither {facts.interface} nor another interface has a usable address: all of them"
            " are tentative, duplicates, or of a smaller scope",
            f"ip -6 address show dev {facts.interface}",
        )
    message = os.strerror(choice.error).lower() if choice.error else "unknown reason"
    return failure(
        f"the kernel does not send towards {choice.towards}: {message}",
        "a policy rule or a route forbids it (unreachable, prohibit, blackhole), or there is no"
        " route",
        "ip -6 rule show && ip -6 route show table all",
    )


def reason(
    chosen: OwnAddress,
    addresses: Iterable[OwnAddress],
    destination: bytes,
    *,
    temporary: bool = False,
) -> str:
    """Return the rule of RFC 6724 5 that preferred an address to its last rival; "" without any."""
    last = 0
    rivals = False
    for other in addresses:
        if other.address == chosen.address or not other.is_usable:
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
            return "the route selects it"
        else:
            last = max(last, differing[0])
    return _RULES[last] if rivals else ""


_RULES = (
    "the only one of its scope",
    "the others are deprecated",
    "of the same label (RFC 6724 2.1)",
    "temporary or not, as use_tempaddr requires",
    "its prefix has most bits in common with the destination",
    "as good as the others, and first in the kernel's list",
)


def _ranks(own: OwnAddress, destination: bytes, temporary: bool) -> tuple[int, ...]:
    """Return the ranks of an address by rules 2, 3, 6, 7 and 8; a higher rank is preferred.

    Rule 5 does not apply: all addresses are of the outgoing interface.
    """
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
