"""Links, addresses, gateways, and word of their changes. This alone imports pyroute2.

Everything is of the network namespace that the process is in.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ndxdp.errors import InterfaceGone, NdxdpError
from ndxdp.ndp import UNSPECIFIED
from ndxdp.policy import Prefix, check_interface

IFF_UP = 0x1
IFF_ALLMULTI = 0x200
_ARPHRD_ETHER = 1
_SCOPE_LINK = 253
_IFA_F_DADFAILED, _IFA_F_TENTATIVE = 0x08, 0x40
_RTF_UP, _RTF_GATEWAY = 0x1, 0x2

_RTMGRP_LINK, _RTMGRP_IPV6_IFADDR, _RTMGRP_IPV6_ROUTE = 0x1, 0x100, 0x400
_RTM_NEWADDR, _RTM_NEWROUTE, _RTM_DELROUTE = 20, 24, 25
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_REPLACE = 0x1, 0x4, 0x100
_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO, _IFA_FLAGS = 1, 2, 6, 8
_IFA_RT_PRIORITY, _IFA_PROTO = 9, 11
_NTF_ROUTER = 0x80

FOREVER = 0xFFFFFFFF
"""Seconds: the lifetime of an address that does not expire (INFINITY_LIFE_TIME)."""

_ROUTES = Path("/proc/thread-self/net/ipv6_route")
_NETNS = "/proc/thread-self/ns/net"


class Link(NamedTuple):
    """An interface. mac: 6 bytes, empty where it has none. kind: `veth`, `bridge`, … or ''.

    master: ifindex of the bridge or bond that it is a port of, 0 without one.
    mcast_router: of a bridge: 2 if every multicast frame is delivered to the host as well, 1 if
    MLD snooping decides; 0 for all else.
    """

    ifindex: int
    name: str
    mac: bytes
    kind: str
    ethernet: bool
    up: bool
    allmulti: bool
    master: int = 0
    mcast_router: int = 0


class NudState(IntEnum):
    """A neighbour entry's state (linux/neighbour.h); NONE also where there is no entry."""

    NONE = 0x00
    INCOMPLETE = 0x01
    REACHABLE = 0x02
    STALE = 0x04
    DELAY = 0x08
    PROBE = 0x10
    FAILED = 0x20
    NOARP = 0x40
    PERMANENT = 0x80


class Neighbour(NamedTuple):
    """The kernel's entry for a neighbour. mac: 6 bytes, None while it is not known."""

    state: NudState
    mac: bytes | None


class OwnAddress(NamedTuple):
    """An address of an interface. preferred, valid: seconds that are left, FOREVER for no end.

    peer: 16 bytes where there is one. flags: IFA_F_*. metric: of its prefix route, 0 for the
    kernel's. origin: who set it (IFA_PROTO), 0 for unknown.
    """

    address: bytes
    length: int
    flags: int
    preferred: int
    valid: int
    link_local: bool = False
    peer: bytes | None = None
    metric: int = 0
    origin: int = 0


@contextlib.contextmanager
def _route() -> Iterator[Any]:
    """A netlink socket, and one place that turns its errors into ours."""
    try:
        with IPRoute() as netlink:
            yield netlink
    except NetlinkError as error:
        raise NdxdpError(
            f"netlink said: {os.strerror(error.code)}", "does the interface come and go?"
        ) from error


def netns() -> int:
    """The inode number of this process's network namespace."""
    return os.stat(_NETNS).st_ino


def find_link(name: str) -> Link | None:
    check_interface(name)
    with _route() as netlink:
        found = netlink.link_lookup(ifname=name)
        try:
            message = netlink.get_links(found[0])[0] if found else None
        except NetlinkError as error:
            if error.code != errno.ENODEV:  # it went while we looked
                raise
            message = None
    if message is None:
        return None
    address = message.get_attr("IFLA_ADDRESS") or ""
    info = message.get_attr("IFLA_LINKINFO")
    is_bridge = info and info.get_attr("IFLA_INFO_KIND") == "bridge"
    bridge = info.get_attr("IFLA_INFO_DATA") if is_bridge else None
    return Link(
        ifindex=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mac=bytes.fromhex(address.replace(":", "")),
        kind=(info.get_attr("IFLA_INFO_KIND") or "") if info else "",
        ethernet=message["ifi_type"] == _ARPHRD_ETHER,
        up=bool(message["flags"] & IFF_UP),
        allmulti=bool(message["flags"] & IFF_ALLMULTI),
        master=message.get_attr("IFLA_MASTER") or 0,
        mcast_router=(bridge.get_attr("IFLA_BR_MCAST_ROUTER") or 0) if bridge else 0,
    )


def answering_link(name: str) -> Link:
    """An interface that solicitations can be answered on; NdxdpError for any other."""
    link = find_link(name)
    if link is None:
        raise NdxdpError(f"there is no interface '{name}'", "see: ip -br link")
    if not link.ethernet or len(link.mac) != 6 or not any(link.mac):
        raise NdxdpError(
            f"{name} has no MAC address: nobody solicits there",
            "name the Ethernet interface that faces the upstream router",
        )
    if not link.up:
        raise NdxdpError(f"{name} is down", f"ip link set dev {name} up")
    return link


def gone(name: str) -> InterfaceGone:
    return InterfaceGone(f"{name} has gone", "start again when it is back")


@contextlib.contextmanager
def present(name: str) -> Iterator[None]:
    """InterfaceGone where the kernel says that there is no such device."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ENXIO):
            raise
        raise gone(name) from error


def owned_addresses(link: Link) -> dict[Prefix, str]:
    """Exact addresses that are never answered for: the interface's own and its gateways'.

    A port's addresses and gateways are those of its bridge.
    """
    here = [(link.ifindex, link.name)]
    if link.master:
        with contextlib.suppress(OSError):  # it went while we looked
            here.append((link.master, socket.if_indextoname(link.master)))
    owned: dict[Prefix, str] = {}
    for _, name in here:
        owned |= {Prefix(address, 128): "gateway" for address in gateways(name)}
    for ifindex, _ in here:
        owned |= {Prefix(address, 128): "own" for address, _ in addresses(ifindex)}
    return owned


def link_local(ifindex: int) -> bytes:
    """The interface's link-local address, :: while it has none."""
    usable = (address for address, is_usable in addresses(ifindex) if is_usable)
    return next(usable, UNSPECIFIED)


def addresses(ifindex: int) -> Iterator[tuple[bytes, bool]]:
    """The interface's IPv6 addresses (16 bytes), and whether each is a usable link-local one."""
    with _route() as netlink:
        for message in netlink.get_addr(family=socket.AF_INET6, index=ifindex):
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            flags = message.get_attr("IFA_FLAGS") or message["flags"]
            usable = not flags & (_IFA_F_DADFAILED | _IFA_F_TENTATIVE)
            link_local = message["scope"] == _SCOPE_LINK and usable
            yield socket.inet_pton(socket.AF_INET6, text), link_local


def own_addresses(ifindex: int) -> list[OwnAddress]:
    """The interface's IPv6 addresses, with their lifetimes."""
    found = []
    with _route() as netlink:
        for message in netlink.get_addr(family=socket.AF_INET6, index=ifindex):
            lifetimes = message.get_attr("IFA_CACHEINFO")
            far, near = message.get_attr("IFA_ADDRESS"), message.get_attr("IFA_LOCAL")
            found.append(
                OwnAddress(
                    address=socket.inet_pton(socket.AF_INET6, near or far),
                    length=message["prefixlen"],
                    flags=message.get_attr("IFA_FLAGS") or message["flags"],
                    preferred=lifetimes["ifa_preferred"],
                    valid=lifetimes["ifa_valid"],
                    link_local=message["scope"] == _SCOPE_LINK,
                    peer=socket.inet_pton(socket.AF_INET6, far) if near else None,
                    metric=message.get_attr("IFA_RT_PRIORITY") or 0,
                    origin=message.get_attr("IFA_PROTO") or 0,
                )
            )
    return found


def set_preferred(ifindex: int, own: OwnAddress, preferred: int) -> None:
    """Give an address another preferred lifetime (s); all else is said as it was.

    The kernel takes what is not said for a wish to have it otherwise. pyroute2 does not let us
    say all of it, so the message is made here.
    """
    attributes = [
        _attribute(_IFA_ADDRESS, own.peer or own.address),
        _attribute(_IFA_LOCAL, own.address),
        _attribute(_IFA_CACHEINFO, struct.pack("=IIII", preferred, own.valid, 0, 0)),
        _attribute(_IFA_FLAGS, struct.pack("=I", own.flags)),
    ]
    if own.metric:
        attributes.append(_attribute(_IFA_RT_PRIORITY, struct.pack("=I", own.metric)))
    if own.origin:
        attributes.append(_attribute(_IFA_PROTO, bytes((own.origin,))))
    header = struct.pack("=BBBBi", socket.AF_INET6, own.length, own.flags & 0xFF, 0, ifindex)
    error = _request(_RTM_NEWADDR, _NLM_F_REPLACE, header + b"".join(attributes))
    if error:
        text = socket.inet_ntop(socket.AF_INET6, own.address)
        raise NdxdpError(
            f"the lifetime of {text} could not be set ({os.strerror(error)})",
            "that needs CAP_NET_ADMIN, and an address that stays for a moment",
        )


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _request(kind: int, flags: int, body: bytes) -> int:
    """One message to rtnetlink; returns 0 or the errno of its acknowledgement."""
    flags |= _NLM_F_REQUEST | _NLM_F_ACK
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.sendto(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body, (0, 0))
        answer = netlink.recv(65536)
    return -int(struct.unpack_from("=i", answer, 16)[0])  # struct nlmsgerr


def neighbour(ifindex: int, address: bytes) -> Neighbour:
    """What the kernel knows of a neighbour (16 bytes)."""
    text = socket.inet_ntop(socket.AF_INET6, address)
    with _route() as netlink:
        try:
            found = netlink.neigh("get", dst=text, ifindex=ifindex, family=socket.AF_INET6)
        except NetlinkError as error:
            if error.code in (errno.ENOENT, errno.ENODEV):
                return Neighbour(NudState.NONE, None)
            raise
    mac = found[0].get_attr("NDA_LLADDR")
    return Neighbour(
        NudState(found[0]["state"]), bytes.fromhex(mac.replace(":", "")) if mac else None
    )


def confirm_neighbour(ifindex: int, address: bytes, mac: bytes, *, router: bool) -> None:
    """Enter a neighbour as reachable, as the kernel does when it hears a solicited answer.

    Its MAC (6 bytes) takes the place of another one; the state ages like any other.
    """
    with _route() as netlink:
        try:
            netlink.neigh(
                "replace",
                family=socket.AF_INET6,
                dst=socket.inet_ntop(socket.AF_INET6, address),
                lladdr=mac.hex(":"),
                ifindex=ifindex,
                state=int(NudState.REACHABLE),
                flags=_NTF_ROUTER if router else 0,
            )
        except NetlinkError as error:
            raise NdxdpError(
                f"the neighbour table could not be written ({os.strerror(error.code)})",
                "gateway care needs CAP_NET_ADMIN",
            ) from error


def gateways(name: str) -> set[bytes]:
    """Addresses (16 bytes) of the default routers behind an interface, in any table.

    From /proc, because netlink would have us parse a whole routing table in Python to find
    them, and there are hosts with 200 000 routes.
    """
    found = set()
    with _ROUTES.open() as routes:
        for line in routes:
            if not line.startswith("00000000000000000000000000000000 00 "):
                continue
            fields = line.split()  # dst len src len nexthop metric refs use flags device
            flags = int(fields[8], 16)
            if fields[9] == name and flags & _RTF_UP and flags & _RTF_GATEWAY:
                found.add(bytes.fromhex(fields[4]))
    return found


def set_allmulti(ifindex: int, on: bool) -> None:
    """Receive every multicast group, or just those that were joined."""
    with _route() as netlink:
        try:
            flags = IFF_ALLMULTI if on else 0
            netlink.link("set", index=ifindex, flags=flags, change=IFF_ALLMULTI)
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return
            raise NdxdpError(
                f"allmulti could not be set ({os.strerror(error.code)})", "run this as root"
            ) from error


def set_mcast_router(ifindex: int, value: int) -> None:
    """Deliver every multicast frame to a bridge's host (2), or what MLD snooping finds (1)."""
    with _route() as netlink:
        try:
            netlink.link("set", index=ifindex, kind="bridge", br_mcast_router=value)
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return
            raise NdxdpError(
                f"the bridge's mcast_router could not be set ({os.strerror(error.code)})",
                "run this as root, or with CAP_NET_ADMIN too",
            ) from error


def has_clsact(ifindex: int) -> bool:
    """The interface has a clsact qdisc."""
    with _route() as netlink:
        return any(
            message["index"] == ifindex and message.get_attr("TCA_KIND") == "clsact"
            for message in netlink.get_qdiscs(index=ifindex)
        )


def has_filters(ifindex: int) -> bool:
    """Somebody has a filter at the interface's clsact qdisc."""
    with _route() as netlink:
        return any(
            True
            for parent in (0xFFFFFFF2, 0xFFFFFFF3)  # TC_H_CLSACT | TC_H_MIN_{INGRESS,EGRESS}
            for _ in netlink.get_filters(index=ifindex, parent=parent)
        )


class Monitor:
    """Wakes its reader when links, IPv6 addresses or IPv6 default routes change.

    It tells where, not what: the reader looks at the present state, so that a lost message costs
    nothing. fileno() is readable when drain() has something to say.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, _RTMGRP_LINK | _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV6_ROUTE))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def drain(self) -> frozenset[int] | None:
        """Read what there is: the interfaces that it is about, None if it may concern all."""
        concerned: set[int] = set()
        everybody = False
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return None if everybody else frozenset(concerned)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                everybody = True  # something was lost
                continue
            everybody = self._read(data, concerned) or everybody

    @staticmethod
    def _read(data: bytes, concerned: set[int]) -> bool:
        """Note the interfaces; True for a default route. Other routes concern nobody."""
        at, everybody = 0, False
        while at + 24 <= len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            if kind in (_RTM_NEWROUTE, _RTM_DELROUTE):
                everybody = everybody or data[at + 17] == 0  # rtm_dst_len
            else:  # ifi_index and ifa_index lie at the same place
                concerned.add(struct.unpack_from("=i", data, at + 20)[0])
            at += max((length + 3) & ~3, 16)
        return everybody
