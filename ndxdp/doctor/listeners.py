"""Other listeners for solicitations: raw ICMPv6 sockets, packet sockets, the kernel's proxy_ndp."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ndxdp.doctor.finding import Finding, note, reason_of, unseen, warning
from ndxdp.ndp.profile import Answer
from ndxdp.netlink import sysctl
from ndxdp.netlink.rtnetlink import NLM_F_DUMP, Rtnetlink, attributes
from ndxdp.rules.address import address_text
from ndxdp.rules.table import Table

_PROC = Path("/proc")
_ICMPV6 = 58
_ETH_P_IPV6, _ETH_P_ALL = 0x86DD, 0x0003

_RTM_GETNEIGH = 30
_NTF_PROXY, _NDA_DST = 0x08, 1
_NDMSG = struct.Struct("=BBHiHBB")

RESPONDERS = ("ndppd", "npd6", "ndpresponder", "pndpd", "ndp-proxy-go", "odhcpd", "ndprbrd")
"""Process names of programs that answer solicitations."""

_NUMBER = (
    "netstat and ss show such a socket as raw6 at [::]:58: 58 is the protocol number of ICMPv6, not"
    " an open port"
)

_PURPOSES = {
    "NetworkManager": "router advertisements",
    "systemd-network": "router advertisements",  # the kernel truncates names to 15 bytes
    "dhcpcd": "router advertisements",
    "rdnssd": "router advertisements",
    "radvd": "router solicitations",
    "dnsmasq": "router solicitations",
}


class Listener(NamedTuple):
    """Process that receives solicitations.

    raw: the process has an ICMPv6 socket, else a packet socket. unit: its systemd unit, or "".
    """

    pid: int
    name: str
    unit: str
    raw: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """Listeners on an interface.

    Attributes:
        interface: The interface.
        listeners: The processes that receive solicitations.
        unknown: Number of ICMPv6 sockets whose process only root can see.
        proxied: Addresses (16 bytes) with a proxy entry on the interface.
        proxy_all: The sysctl conf.all.proxy_ndp.
        table: The rules of the interface; None if ndxdp answers nothing there.
        unproxied: Why the proxy entries could not be read; "" if they were.
    """

    interface: str
    listeners: tuple[Listener, ...]
    unknown: int
    proxied: tuple[bytes, ...]
    proxy_all: bool
    table: Table | None
    unproxied: str = ""


def gather(
    interface: str, ifindex: int, table: Table | None, daemons: Container[int] = ()
) -> Facts:
    """List the listeners and proxy entries of an interface.

    Args:
        interface: The interface.
        ifindex: Its index.
        table: The rules of the interface; None if ndxdp answers nothing there.
        daemons: The processes of ndxdp's daemons, which are left out.

    Raises:
        OSError: The kernel's list of ICMPv6 sockets cannot be read.
    """
    proxies: tuple[bytes, ...] = ()
    unproxied = ""
    try:
        proxies = tuple(proxied(ifindex))
    except OSError as error:
        unproxied = reason_of(error)
    raw = set(_raw_sockets())
    wanted = raw | set(_packet_sockets(ifindex))
    owners: dict[int, Listener] = {}
    seen: set[int] = set()
    for inode, pid in _holders(wanted):
        seen.add(inode)
        if pid in daemons:
            continue
        before = owners.get(pid)
        is_raw = inode in raw or (before is not None and before.raw)
        owners[pid] = Listener(pid, _name(pid), _unit(pid), is_raw)
    return Facts(
        interface,
        tuple(owners[pid] for pid in sorted(owners)),
        len(raw - seen),
        proxies,
        bool(sysctl.conf("all", "proxy_ndp")),
        table,
        unproxied,
    )


def _lines(path: Path) -> list[list[str]]:
    """Return the fields of each line, without the heading."""
    return [line.split() for line in path.read_text().splitlines()[1:]]


def _raw_sockets() -> Iterator[int]:
    """Yield the inodes of ICMPv6 sockets; the local port of a raw socket is its protocol."""
    for fields in _lines(_PROC / "thread-self/net/raw6"):
        if int(fields[1].rpartition(":")[2], 16) == _ICMPV6:
            yield int(fields[9])


def _packet_sockets(ifindex: int) -> Iterator[int]:
    """Yield the inodes of packet sockets that receive IPv6 frames of an interface."""
    try:
        lines = _lines(_PROC / "thread-self/net/packet")
    except FileNotFoundError:  # a kernel without packet sockets
        return
    for fields in lines:
        protocol, bound = int(fields[3], 16), int(fields[4])
        if protocol in (_ETH_P_IPV6, _ETH_P_ALL) and bound in (0, ifindex):
            yield int(fields[8])


def _holders(inodes: set[int]) -> Iterator[tuple[int, int]]:
    """Yield inode and process of each socket whose process this one may see."""
    if not inodes:
        return
    names = {f"socket:[{inode}]": inode for inode in inodes}
    for process in _PROC.glob("[0-9]*"):
        try:
            descriptors = os.listdir(process / "fd")
        except OSError:  # no permission, or the process has ended
            continue
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                inode = names.get(os.readlink(process / "fd" / descriptor))
                if inode is not None:
                    yield inode, int(process.name)


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (_PROC / str(pid) / "comm").read_text().strip()
    return "?"


def _unit(pid: int) -> str:
    with contextlib.suppress(OSError):
        found = re.search(
            r"/system\.slice/(?:.*/)?([^/]+\.service)", (_PROC / str(pid) / "cgroup").read_text()
        )
        if found:
            return found[1]
    return ""


def proxied(ifindex: int) -> list[bytes]:
    """Return the addresses (16 bytes) of the kernel's proxy entries on an interface.

    Raises:
        OSError: The kernel refused the request.
    """
    body = _NDMSG.pack(socket.AF_INET6, 0, 0, 0, 0, _NTF_PROXY, 0)
    with Rtnetlink() as kernel:
        messages = kernel.ask(_RTM_GETNEIGH, NLM_F_DUMP, body)
    found = []
    for message in messages:
        entry = _NDMSG.unpack_from(message)
        address = attributes(message[_NDMSG.size :]).get(_NDA_DST)
        if address and entry[3] == ifindex and entry[5] & _NTF_PROXY:
            found.append(address)
    return sorted(found)


def judge(facts: Facts) -> list[Finding]:
    """Return findings about other processes and proxy entries that may answer solicitations."""
    found = [*_processes(facts), *_proxies(facts)]
    if facts.unproxied:
        found.append(unseen(f"cannot check the kernel's proxy_ndp entries: {facts.unproxied}"))
    if facts.unknown:
        found.append(
            unseen(
                f"cannot check which processes have {facts.unknown} ICMPv6 sockets: only root sees"
                " them",
                why="run this as root",
            )
        )
    return found


def _processes(facts: Facts) -> Iterator[Finding]:
    number = _NUMBER
    for listener in facts.listeners:
        called = f"{listener.name} (pid {listener.pid})"
        if listener.name not in RESPONDERS:
            purpose = _PURPOSES.get(listener.name)
            if listener.raw and purpose:
                harmless = "this is harmless: the program answers no solicitations"
                yield note(f"{called} receives ICMPv6, for {purpose}; {harmless}", number)
            elif listener.raw:
                yield note(f"{called} receives ICMPv6", number)
            number = "" if listener.raw else number  # explain the number only once
        elif facts.table is None:
            yield note(f"{called} answers solicitations")
        else:
            yield warning(
                f"{called} answers solicitations, too",
                "the program may answer for addresses for which ndxdp's rules say never",
                f"systemctl disable --now {listener.unit}"
                if listener.unit
                else f"kill {listener.pid}",
            )


def _proxies(facts: Facts) -> Iterator[Finding]:
    """Yield findings about the kernel's proxy entries.

    The kernel answers multicast solicitations with proxy_ndp of the interface or of `all`, but
    unicast ones, which it forwards, only with that of `all` (ip6_forward).
    """
    alone = []
    for address in facts.proxied:
        matched = facts.table.lookup(address) if facts.table else None
        text = address_text(address)
        if matched is None:
            alone.append(text)
        elif matched[1].answer is Answer.NEVER:
            yield warning(
                f"the kernel's proxy_ndp answers for {text}, although ndxdp's rule says never",
                "ndxdp passes the solicitations to the kernel, which answers them",
                f"ip -6 neighbour delete proxy {text} dev {facts.interface}",
            )
        else:
            yield note(f"ndxdp answers for {text} before the kernel's proxy_ndp does")
    if not alone:
        return
    several = f"{alone[0]} and {len(alone) - 1} more" if len(alone) > 1 else alone[0]
    if facts.proxy_all:
        yield note(f"the kernel's proxy_ndp answers for {several}")
        return
    yield warning(
        f"proxy_ndp for {several} does not answer unicast solicitations",
        "the router probes its neighbours by unicast: they work at first, and are unreachable after"
        " some minutes; only conf.all.proxy_ndp helps",
        sysctl.cure(sysctl.setting("all", "proxy_ndp", 1)),
    )
