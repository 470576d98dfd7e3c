"""Network interfaces (links) of the process's network namespace: lookup and settings."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import NamedTuple

from ndxdp.errors import InterfaceGone, NdxdpError, interface_gone
from ndxdp.netlink.rtnetlink import (
    LINK,
    NLM_F_ACK,
    Rtnetlink,
    ask_link,
    attribute,
    attributes,
    netlink_errors,
    number_of,
    text_of,
)
from ndxdp.rules.interface_name import INTERFACE_MAX, check_interface

# linux/rtnetlink.h, linux/if_link.h, linux/if_arp.h, linux/if.h
_RTM_NEWLINK = 16
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINK, _IFLA_MASTER, _IFLA_OPERSTATE = 1, 3, 5, 10, 16
_IFLA_LINKINFO, _IFLA_LINK_NETNSID, _IFLA_CARRIER_UP_COUNT, _IFLA_ALT_IFNAME = 18, 37, 47, 53
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND = 1, 2, 4
_BR_MCAST_ROUTER = 22
_ARPHRD_ETHER = 1
_IF_OPER_UNKNOWN = 0
_IF_OPER_UP = 6
_IFF_LOWER_UP = 0x10000

IFF_UP = 0x1

IFF_ALLMULTI = 0x200

_PORTS = ("bridge", "bond", "team")
"""Kinds of masters that receive the packets of their ports as their own; a VRF does not."""

_STACKED = ("vlan", "macvlan", "ipvlan")
"""Kinds of interfaces on top of one other interface, whose carrier they follow."""


class Link(NamedTuple):
    """An interface.

    Attributes:
        ifindex: The index.
        name: The name.
        mac: The MAC, 6 bytes; empty without a MAC.
        kind: The kind, such as `veth` or `bridge`; '' for a physical interface.
        ethernet: True for an Ethernet interface.
        up: True if the interface is administratively up.
        allmulti: True if the interface receives every multicast group.
        master: The ifindex of the bridge or bond that the interface is a port of; 0 without one.
        mcast_router: For a bridge, 2 if the host receives every multicast frame, 1 if MLD snooping
            decides; 0 for other interfaces.
        l3_ifindex: The interface by which packets arrive for the FIB: the master of a port,
            otherwise the interface itself.
        operational: True if the interface is up, has carrier, and its state is UP or UNKNOWN
            (RFC 2863).
        carrier_ups: How often the carrier has come up, on this interface and on `lower` together,
            because the interface does not see short interruptions of `lower`.
        lower: The ifindex of the interface that this one is on top of; 0 without one.
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
    l3_ifindex: int = 0
    operational: bool = False
    carrier_ups: int = 0
    lower: int = 0


def find_link(name: str) -> Link | None:
    """Return the interface of a name; None if there is none.

    Raises:
        UsageError: No interface can have the name.
        NdxdpError: The kernel gave an unexpected error.
    """
    check_interface(name)
    named = name.encode()
    by = _IFLA_ALT_IFNAME if len(named) > INTERFACE_MAX else _IFLA_IFNAME
    with netlink_errors():
        try:
            ifindex, kind, flags, found = ask_link(more=attribute(by, named + b"\0"))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return None
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    own, of_master = text_of(info.get(_INFO_KIND)), text_of(info.get(_INFO_SLAVE_KIND))
    bridge = attributes(info.get(_INFO_DATA, b"")) if own == "bridge" else {}
    master = number_of(found.get(_IFLA_MASTER))
    is_stacked = own in _STACKED and _IFLA_LINK_NETNSID not in found
    lower = number_of(found.get(_IFLA_LINK)) if is_stacked else 0
    return Link(
        ifindex=ifindex,
        name=text_of(found.get(_IFLA_IFNAME)),
        mac=found.get(_IFLA_ADDRESS, b""),
        kind=own,
        ethernet=kind == _ARPHRD_ETHER,
        up=bool(flags & IFF_UP),
        allmulti=bool(flags & IFF_ALLMULTI),
        master=master,
        mcast_router=number_of(bridge.get(_BR_MCAST_ROUTER)),
        l3_ifindex=master if of_master in _PORTS else ifindex,
        operational=is_operational(flags, number_of(found.get(_IFLA_OPERSTATE))),
        carrier_ups=_carrier_ups(found) + (_carrier_ups_of(lower) if lower else 0),
        lower=lower,
    )


NO_MAC = "it has no MAC address, so no router solicits there"
"""The reason why ndxdp answers nothing on an interface for which has_mac() is False."""


def has_mac(link: Link) -> bool:
    """Return True if the interface is Ethernet with a MAC address, so that routers solicit there.

    OpenVZ's venet, tun, WireGuard, PPP and the loopback interface have no MAC.
    """
    return link.ethernet and len(link.mac) == 6 and any(link.mac)


def is_quiet(name: str) -> bool:
    """Return True if the interface exists and has no MAC, so that no router solicits there."""
    try:
        link = find_link(name)
    except (NdxdpError, OSError):  # A sandbox may have no netlink.
        return False
    return link is not None and not has_mac(link)


def is_missing(name: str) -> bool:
    """Return True if there is no interface of this name, nor one with it as alternative name."""
    try:
        return find_link(name) is None
    except (NdxdpError, OSError):  # A sandbox may have no netlink.
        return False


def any_link(name: str) -> Link:
    """Return the interface of a name; raise InterfaceGone if there is none."""
    link = find_link(name)
    if link is None:
        raise InterfaceGone(f"there is no interface '{name}'", "see: ip -br link")
    return link


def _carrier_ups(found: dict[int, bytes]) -> int:
    return number_of(found.get(_IFLA_CARRIER_UP_COUNT))


def _carrier_ups_of(ifindex: int) -> int:
    """Return how often the carrier of an interface has come up; 0 if there is no such interface."""
    with netlink_errors():
        try:
            return _carrier_ups(ask_link(ifindex).attributes)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return 0


def is_operational(flags: int, operstate: int) -> bool:
    """Return True if an interface can send and receive (Documentation/networking/operstates.rst).

    A driver that cannot detect carrier leaves IFF_LOWER_UP set and the state UNKNOWN.
    """
    wanted = IFF_UP | _IFF_LOWER_UP
    return flags & wanted == wanted and operstate in (_IF_OPER_UNKNOWN, _IF_OPER_UP)


def answering_link(name: str, *, down: bool = False) -> Link:
    """Return an interface on which solicitations can be answered.

    Args:
        name: The interface's name.
        down: True if the interface may be down.

    Raises:
        NdxdpError: There is no such interface, it has no MAC, or it is down.
    """
    link = any_link(name)
    if not has_mac(link):
        raise NdxdpError(
            f"{name} has no MAC address: no router solicits there, and there is nothing to answer",
            "name the Ethernet interface that faces the upstream router; which of its addresses"
            f" {name} sends from is up to [interface.addresses] in a file for `ndxdp run -c`",
        )
    if not link.up and not down:
        raise NdxdpError(f"{name} is down", f"ip link set dev {name} up")
    return link


@contextlib.contextmanager
def interface_errors(name: str) -> Iterator[None]:
    """Turn ENODEV and ENXIO of a block into InterfaceGone."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ENXIO):
            raise
        raise interface_gone(name) from error


def set_allmulti(ifindex: int, on: bool) -> None:
    """Set or clear allmulti, the reception of every multicast group; ignore a missing interface."""
    flags = IFF_ALLMULTI if on else 0
    try:
        _set_link(LINK.pack(0, 0, ifindex, flags, IFF_ALLMULTI))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return
        raise NdxdpError(f"cannot set allmulti: {error.strerror}", "run this as root") from error


def set_mcast_router(ifindex: int, value: int) -> None:
    """Set mcast_router of a bridge: deliver every multicast frame to the host (2), or snoop (1)."""
    bridge = attribute(_BR_MCAST_ROUTER, bytes([value]))
    info = attribute(_INFO_KIND, b"bridge\0") + attribute(_INFO_DATA, bridge)
    try:
        _set_link(LINK.pack(0, 0, ifindex, 0, 0) + attribute(_IFLA_LINKINFO, info))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return
        raise NdxdpError(
            f"cannot set mcast_router of the bridge: {error.strerror}",
            "run this as root, or with CAP_NET_ADMIN too",
        ) from error


def _set_link(body: bytes) -> None:
    """Change a link; body: struct ifinfomsg and attributes."""
    with Rtnetlink() as kernel:
        kernel.ask(_RTM_NEWLINK, NLM_F_ACK, body)
