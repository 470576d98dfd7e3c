"""Exposure of the exporter: its listening sockets, and whether the firewall protects them."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ndxdp.doctor.finding import Finding, note, unseen, warning
from ndxdp.doctor.netfilter import ACCEPT, IP, IPV4, Ruleset
from ndxdp.netlink.addresses import OwnAddress
from ndxdp.netlink.rtnetlink import NLM_F_DUMP, Rtnetlink, attributes
from ndxdp.store.directories import Trees

_PROC = Path("/proc")

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_REQUEST = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2
_MESSAGE = struct.Struct("=BBBBHH16s16sI8sIIIII")  # struct inet_diag_msg; ports in network order
_SKV6ONLY = 11  # INET_DIAG_SKV6ONLY
_LISTEN = 1 << 10  # of TCP_LISTEN

_LOCAL = ipaddress.IPv6Network("fc00::/7")


class Listener(NamedTuple):
    """Listening TCP socket. both: the socket listens on `::` and accepts IPv4 as well."""

    address: str
    port: int
    both: bool
    inode: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Listening sockets and firewall of an interface.

    Attributes:
        interface: The interface.
        listeners: Sockets of the processes that answer on the interface.
        problem: Why these could not be listed; "" if they were.
        is_public: The interface has an address that is reachable from the Internet.
        ruleset: The firewall's rules; None if they could not be read.
        legacy: The firewall has rules that nft does not show.
    """

    interface: str
    listeners: tuple[Listener, ...]
    problem: str
    is_public: bool
    ruleset: Ruleset | None
    legacy: bool


def gather(
    trees: Trees,
    name: str,
    interface: str,
    addresses: list[OwnAddress],
    ruleset: Ruleset | None,
    legacy: bool,
) -> Facts | None:
    """List the listening sockets of the processes that answer on an interface.

    Args:
        trees: The directories of pins and files.
        name: The interface on which they answer.
        interface: The interface that has its addresses.
        addresses: These addresses.
        ruleset: The firewall's rules; None if they could not be read.
        legacy: The firewall has rules that nft does not show.

    Returns:
        None if no process answers there.
    """
    processes = list(_holders(trees, name))
    if not processes:
        return None
    found: tuple[Listener, ...] = ()
    problem = ""
    try:
        inodes = {inode for process in processes for inode in _sockets(process)}
        found = tuple(sorted({each for each in _listening() if each.inode in inodes}))
    except OSError as error:
        problem = error.strerror or str(error)
    is_public = any(
        not own.link_local and ipaddress.IPv6Address(own.address) not in _LOCAL for own in addresses
    )
    return Facts(interface, found, problem, is_public, ruleset, legacy)


def _holders(trees: Trees, name: str) -> Iterator[int]:
    """Yield the processes that have locked an interface's directory, as each daemon does."""
    wanted = set()
    for tree in trees:
        with contextlib.suppress(OSError):
            found = tree.path(name).stat()
            device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
            wanted.add(f"{device}:{found.st_ino}")
    if not wanted:
        return
    for line in (_PROC / "locks").read_text().splitlines():
        # `1: FLOCK  ADVISORY  WRITE 1234 00:20:42 0 EOF`; `->` marks a process that waits.
        fields = line.split()
        if fields[1] == "FLOCK" and fields[3] == "WRITE" and fields[5] in wanted:
            yield int(fields[4])


def _sockets(process: int) -> Iterator[int]:
    """Yield the inodes of a process's sockets.

    Raises:
        PermissionError: The process is another user's.
    """
    directory = _PROC / str(process) / "fd"
    for descriptor in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(directory / descriptor)
            if target.startswith("socket:["):
                yield int(target[8:-1])


def _listening() -> Iterator[Listener]:
    """Yield all listening TCP sockets of this network namespace.

    Netlink shows IPV6_V6ONLY, which /proc/net/tcp6 does not.
    """
    with Rtnetlink(_NETLINK_SOCK_DIAG) as kernel:
        for family in (socket.AF_INET6, socket.AF_INET):
            request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _LISTEN)
            for message in kernel.ask(_SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, request):
                fields = _MESSAGE.unpack_from(message)
                packed = fields[6] if family is socket.AF_INET6 else fields[6][:4]
                address = socket.inet_ntop(family, packed)
                only = attributes(message[_MESSAGE.size :]).get(_SKV6ONLY, b"\1")[0]
                both = address == "::" and not only
                yield Listener(address, socket.ntohs(fields[4]), both, fields[14])


def judge(facts: Facts) -> list[Finding]:
    """Return a finding about each address at which the exporter listens: who can reach it."""
    if facts.problem:
        return [
            unseen(f"cannot check access to the exporter: {facts.problem}", why="run this as root")
        ]
    return [_judge_one(facts, listener) for listener in facts.listeners]


def _judge_one(facts: Facts, listener: Listener) -> Finding:
    parsed = ipaddress.ip_address(listener.address)
    shown = f"[{listener.address}]" if parsed.version == 6 else listener.address
    at = f"metrics at {shown}:{listener.port}"
    if parsed.is_loopback:
        return note(f"{at}: only this host can read them")
    by = ["IPv6"] if parsed.version == 6 else ["IPv4"]
    by += ["IPv4"] if listener.both else []
    what = f"{at}, by {' and '.join(by)}"
    if facts.ruleset is None or facts.legacy:
        return note(f"{what}: access depends on the firewall, which could not be checked")
    fates = {version: _fate(facts, facts.ruleset, listener.port, version) for version in by}
    if set(fates.values()) == {False}:
        return note(f"{what}: the firewall drops connections that come in by {facts.interface}")
    open_to = [version for version, passes in fates.items() if passes]
    if "IPv6" not in open_to or not facts.is_public:
        return note(f"{what}: open to clients that the firewall accepts on {facts.interface}")
    rule = f'iifname "{facts.interface}" tcp dport {listener.port} drop'
    return warning(
        f"{at} is open to the Internet, by {' and '.join(open_to)}",
        "everybody can read rules, gateways and rates there. To prevent this, set listen in"
        " [metrics] to [::1], or restrict the port in the firewall",
        "nft 'add table inet ndxdp_metrics; add chain inet ndxdp_metrics input"
        f" {{ type filter hook input priority 0; }}; add rule inet ndxdp_metrics input {rule}'",
    )


def _fate(facts: Facts, ruleset: Ruleset, port: int, version: str) -> bool | None:
    """Return whether a new connection passes the firewall; None if that is not certain."""
    ip = "ipv6" if version == "IPv6" else "ipv4"
    packet = {
        "meta iifname": facts.interface,
        "meta iif": facts.interface,
        "meta nfproto": ip,
        "meta protocol": "ip6" if ip == "ipv6" else "ip",
        "meta l4proto": "tcp",
        "ip6 nexthdr": "tcp",
        "tcp dport": port,
        "th dport": port,
        "ct state": "new",
    }
    families = IP if ip == "ipv6" else IPV4
    hooks = ("prerouting", "input")
    if ruleset.dropping(hooks, packet, families):
        return False
    chains = ruleset.chains.values()
    on_the_way = [one for one in chains if one.hook in hooks and one.family in families]
    certain = all(ruleset.outcomes(chain, packet) == {ACCEPT} for chain in on_the_way)
    return True if certain else None
