"""Links, addresses, gateways, and word of their changes. This alone imports pyroute2.

Everything is of the network namespace that the process is in.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any, NamedTuple

from ndxdp.errors import InterfaceGone, NdxdpError, gone
from ndxdp.netlink.messages import LinkMessage, ask, netlink_errors
from ndxdp.rules.interface_name import INTERFACE_MAX, check_interface

_RTM_GETLINK = 18
_ARPHRD_ETHER = 1
_IF_OPER_UNKNOWN = 0
_IF_OPER_UP = 6
_IFF_LOWER_UP = 0x10000
_RTM_NEWLINK = 16

IFF_UP = 0x1

IFF_ALLMULTI = 0x200

_PORTS = ("bridge", "bond", "team")
"""Kinds of masters that take their ports' packets for their own; a VRF does not."""

_STACKED = ("vlan", "macvlan", "ipvlan")
"""Kinds that are on top of one other interface, and have their carrier from it."""


class Link(NamedTuple):
    """An interface. mac: 6 bytes, empty where it has none. kind: `veth`, `bridge`, … or ''.

    master: ifindex of the bridge or bond that it is a port of, 0 without one. l3_ifindex: of
    the interface that its packets come in by for the FIB: a port's are its master's.
    mcast_router: of a bridge: 2 if every multicast frame is delivered to the host as well, 1 if
    MLD snooping decides; 0 for all else.
    operational: the interface is up, has carrier, and its state is UP or UNKNOWN (RFC 2863).
    carrier_ups: how often the interface has got its carrier so far; with that of the interface that
    it is on top of, whose short interruptions it does not see. lower: ifindex of that one, or 0.
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
    check_interface(name)
    with netlink_errors():
        try:
            is_long = len(name.encode()) > INTERFACE_MAX
            by = "IFLA_ALT_IFNAME" if is_long else "IFLA_IFNAME"
            (message,) = ask(_RTM_GETLINK, 0, LinkMessage, [(by, name)])
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return None
    info = message.get_attr("IFLA_LINKINFO")
    is_bridge = info and info.get_attr("IFLA_INFO_KIND") == "bridge"
    bridge = info.get_attr("IFLA_INFO_DATA") if is_bridge else None
    master = message.get_attr("IFLA_MASTER") or 0
    is_port = info and info.get_attr("IFLA_INFO_SLAVE_KIND") in _PORTS
    is_stacked = info and info.get_attr("IFLA_INFO_KIND") in _STACKED
    elsewhere = message.get_attr("IFLA_LINK_NETNSID") is not None
    lower = message.get_attr("IFLA_LINK") or 0 if is_stacked and not elsewhere else 0
    return Link(
        ifindex=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mac=bytes(message.get_attr("IFLA_ADDRESS") or b""),
        kind=(info.get_attr("IFLA_INFO_KIND") or "") if info else "",
        ethernet=message["ifi_type"] == _ARPHRD_ETHER,
        up=bool(message["flags"] & IFF_UP),
        allmulti=bool(message["flags"] & IFF_ALLMULTI),
        master=master,
        mcast_router=(bridge.get_attr("IFLA_BR_MCAST_ROUTER") or 0) if bridge else 0,
        l3_ifindex=master if is_port else message["index"],
        operational=is_operational(message["flags"], message.get_attr("IFLA_OPERSTATE") or 0),
        carrier_ups=_carrier_ups(message) + (_carrier_ups_of(lower) if lower else 0),
        lower=lower,
    )


NO_MAC = "it has no MAC address, so no router solicits there"
"""Why nothing is answered on an interface that has_mac() is not true of."""


def has_mac(link: Link) -> bool:
    """Return True if routers solicit on the interface: it is Ethernet, and has a MAC address.

    OpenVZ's venet, tun, WireGuard, PPP and the loopback interface have none.
    """
    return link.ethernet and len(link.mac) == 6 and any(link.mac)


def is_quiet(name: str) -> bool:
    """Return True if there is an interface of this name, and no router solicits there."""
    try:
        link = find_link(name)
    except (NdxdpError, OSError):  # a sandbox without netlink
        return False
    return link is not None and not has_mac(link)


def any_link(name: str) -> Link:
    """Return the interface of this name, whatever it is; InterfaceGone if there is none."""
    link = find_link(name)
    if link is None:
        raise InterfaceGone(f"there is no interface '{name}'", "see: ip -br link")
    return link


def _carrier_ups(message: Any) -> int:
    return message.get_attr("IFLA_CARRIER_UP_COUNT") or 0


def _carrier_ups_of(ifindex: int) -> int:
    """Return the count of an interface; 0 if it has gone."""
    with netlink_errors():
        try:
            (message,) = ask(_RTM_GETLINK, 0, LinkMessage, index=ifindex)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return 0
    return _carrier_ups(message)


def is_operational(flags: int, operstate: int) -> bool:
    """True if an interface can send and receive (Documentation/networking/operstates.rst).

    A driver that knows no carrier leaves IFF_LOWER_UP set and the state UNKNOWN.
    """
    wanted = IFF_UP | _IFF_LOWER_UP
    return flags & wanted == wanted and operstate in (_IF_OPER_UNKNOWN, _IF_OPER_UP)


def answering_link(name: str, *, down: bool = False) -> Link:
    """An interface that solicitations can be answered on; NdxdpError for any other.

    down: it may be down, and is to be answered on once it is up.
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
    """InterfaceGone where the kernel says that there is no such device."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ENXIO):
            raise
        raise gone(name) from error


def set_allmulti(ifindex: int, on: bool) -> None:
    """Receive every multicast group, or just those that were joined."""
    flags = IFF_ALLMULTI if on else 0
    try:
        ask(_RTM_NEWLINK, 0, LinkMessage, index=ifindex, flags=flags, change=IFF_ALLMULTI)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return
        raise NdxdpError(
            f"allmulti could not be set ({error.strerror})", "run this as root"
        ) from error


def set_mcast_router(ifindex: int, value: int) -> None:
    """Deliver every multicast frame to a bridge's host (2), or what MLD snooping finds (1)."""
    bridge = {"attrs": [("IFLA_BR_MCAST_ROUTER", value)]}
    info = {"attrs": [("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", bridge)]}
    try:
        ask(_RTM_NEWLINK, 0, LinkMessage, [("IFLA_LINKINFO", info)], index=ifindex)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return
        raise NdxdpError(
            f"the bridge's mcast_router could not be set ({error.strerror})",
            "run this as root, or with CAP_NET_ADMIN too",
        ) from error
