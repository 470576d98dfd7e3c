"""Links, addresses, gateways, and word of their changes. This alone imports pyroute2.

Everything is of the network namespace that the process is in.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from ndxdp import memory
from ndxdp.errors import InterfaceGone, NdxdpError, gone, is_exhausted
from ndxdp.ndp.responder import UNSPECIFIED
from ndxdp.netlink import rtnetlink
from ndxdp.netlink.fib import Fib, NudState, RouteType
from ndxdp.netlink.netns import netns as netns
from ndxdp.rules.rule import GATEWAY_LABEL, INTERFACE_MAX, OWN_LABEL, Prefix, check_interface
from ndxdp.sockets.cbpf import JEQ, LD_B, LD_H, RET, assemble, attach_filter

# Its __init__ imports a database, HTTP, mocks and every family of netlink: 11 MB and 0.14 s. What
# messages are made of is 0.4 MB of that.
memory.defer("pyroute2")
from pyroute2.netlink import nla, nlmsg  # noqa: E402

IFF_UP = 0x1
IFF_ALLMULTI = 0x200
_IFF_LOWER_UP = 0x10000
_IF_OPER_UNKNOWN, _IF_OPER_UP = 0, 6
_IFLA_MASTER, _IFLA_OPERSTATE, _IFLA_LINKINFO, _IFLA_EVENT = 10, 16, 18, 44
_IFLA_CARRIER_UP_COUNT = 47
_IFLA_INFO_KINDS = (1, 4)  # IFLA_INFO_KIND, IFLA_INFO_SLAVE_KIND
_IFLA_EVENT_BONDING_FAILOVER, _IFLA_EVENT_NOTIFY_PEERS = 3, 4
_ARPHRD_ETHER = 1
_SCOPE_LINK = 253
_IFA_F_DADFAILED, _IFA_F_TENTATIVE = 0x08, 0x40

_RTMGRP_LINK, _RTMGRP_IPV6_IFADDR, _RTMGRP_IPV6_ROUTE = 0x1, 0x100, 0x400
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_RTM_NEWNEIGH, _RTM_GETNEIGH = 28, 30
_RTM_GETQDISC, _RTM_GETTFILTER = 38, 46
_RTM_NEWADDRLABEL, _RTM_DELADDRLABEL, _RTM_GETADDRLABEL = 72, 73, 74
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLM_F_REPLACE, _NLM_F_CREATE = 0x100, 0x400
_NTF_ROUTER = 0x80
_RTPROT_KERNEL, _RTPROT_RA = 2, 9
_PORTS = ("bridge", "bond", "team")
"""Kinds of masters that take their ports' packets for their own; a VRF does not."""
_STACKED = ("vlan", "macvlan", "ipvlan")
"""Kinds that are on top of one other interface, and have their carrier from it."""
_GUESTS = (b"veth", b"tun")
"""Kinds of ports that lead to containers and virtual machines, and not to an upstream."""

FOREVER = 0xFFFFFFFF
"""Seconds: the lifetime of an address that does not expire (INFINITY_LIFE_TIME)."""


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


class _LinkMessage(nlmsg):  # type: ignore[misc]
    """struct ifinfomsg, and those of its attributes that are looked at here."""

    fields = (
        ("family", "B"),
        ("__align", "x"),
        ("ifi_type", "H"),
        ("index", "i"),
        ("flags", "I"),
        ("change", "I"),
    )
    nla_map = (
        (1, "IFLA_ADDRESS", "cdata"),
        (3, "IFLA_IFNAME", "asciiz"),
        (5, "IFLA_LINK", "uint32"),
        (10, "IFLA_MASTER", "uint32"),
        (16, "IFLA_OPERSTATE", "uint8"),
        (18, "IFLA_LINKINFO", "linkinfo"),
        (37, "IFLA_LINK_NETNSID", "int32"),
        (47, "IFLA_CARRIER_UP_COUNT", "uint32"),
        (53, "IFLA_ALT_IFNAME", "asciiz"),
    )

    class linkinfo(nla):  # type: ignore[misc]
        nla_map = (
            (1, "IFLA_INFO_KIND", "asciiz"),
            (2, "IFLA_INFO_DATA", "bridge"),
            (4, "IFLA_INFO_SLAVE_KIND", "asciiz"),
        )

        class bridge(nla):  # type: ignore[misc]
            nla_map = ((22, "IFLA_BR_MCAST_ROUTER", "uint8"),)


class _AddressMessage(nlmsg):  # type: ignore[misc]
    """struct ifaddrmsg."""

    fields = (
        ("family", "B"),
        ("prefixlen", "B"),
        ("flags", "B"),
        ("scope", "B"),
        ("index", "I"),
    )
    nla_map = (
        (1, "IFA_ADDRESS", "cdata"),
        (2, "IFA_LOCAL", "cdata"),
        (6, "IFA_CACHEINFO", "lifetimes"),
        (8, "IFA_FLAGS", "uint32"),
        (9, "IFA_RT_PRIORITY", "uint32"),
        (11, "IFA_PROTO", "uint8"),
    )

    class lifetimes(nla):  # type: ignore[misc]
        fields = (("preferred", "I"), ("valid", "I"), ("cstamp", "I"), ("tstamp", "I"))


class _AddressLabelMessage(nlmsg):  # type: ignore[misc]
    """struct ifaddrlblmsg."""

    fields = (
        ("family", "B"),
        ("__reserved", "B"),
        ("prefixlen", "B"),
        ("flags", "B"),
        ("index", "I"),
        ("seq", "I"),
    )
    nla_map = ((1, "IFAL_ADDRESS", "cdata"), (2, "IFAL_LABEL", "uint32"))


class _NeighbourMessage(nlmsg):  # type: ignore[misc]
    """struct ndmsg."""

    fields = (
        ("family", "B"),
        ("__pad", "3x"),
        ("ifindex", "i"),
        ("state", "H"),
        ("flags", "B"),
        ("ndm_type", "B"),
    )
    nla_map = ((1, "NDA_DST", "cdata"), (2, "NDA_LLADDR", "cdata"))


class _TrafficMessage(nlmsg):  # type: ignore[misc]
    """struct tcmsg."""

    fields = (
        ("family", "B"),
        ("__pad", "3x"),
        ("index", "i"),
        ("handle", "I"),
        ("parent", "I"),
        ("info", "I"),
    )
    nla_map = ((1, "TCA_KIND", "asciiz"),)


def _ask(kind: int, how: int, form: Any, attributes: Any = (), /, **fields: int) -> list[Any]:
    """What rtnetlink answers to a message; OSError for a refusal.

    how: NLM_F_*. form: the class of the message, and of the answers. attributes: names and values.
    """
    message = form()
    message.update(fields)
    message["attrs"] = list(attributes)
    is_dump = how == _NLM_F_DUMP  # another meaning of the same bits has NLM_F_REPLACE
    flags = _NLM_F_REQUEST | how | (0 if is_dump else _NLM_F_ACK)
    message["header"] = {"type": kind, "flags": flags, "sequence_number": 1, "pid": 0}
    message.encode()
    answers = [form(data) for data in rtnetlink.exchange(bytes(message.data))]
    for answer in answers:
        answer.decode()
    return answers


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """An NdxdpError for what nobody expects of netlink."""
    try:
        yield
    except OSError as error:
        if is_exhausted(error):
            raise
        raise NdxdpError(
            f"netlink said: {error.strerror}", "does the interface come and go?"
        ) from error


def find_link(name: str) -> Link | None:
    check_interface(name)
    with _told():
        try:
            is_long = len(name.encode()) > INTERFACE_MAX
            by = "IFLA_ALT_IFNAME" if is_long else "IFLA_IFNAME"
            (message,) = _ask(_RTM_GETLINK, 0, _LinkMessage, [(by, name)])
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


NO_MAC = "it has no MAC address, so nobody solicits there"
"""Why nothing is answered on an interface that has_mac() is not true of."""


def has_mac(link: Link) -> bool:
    """Return True if routers solicit on the interface: it is Ethernet, and has a MAC address.

    OpenVZ's venet, tun, WireGuard, PPP and the loopback interface have none.
    """
    return link.ethernet and len(link.mac) == 6 and any(link.mac)


def is_quiet(name: str) -> bool:
    """Return True if there is an interface of this name, and nobody solicits there."""
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
    with _told():
        try:
            (message,) = _ask(_RTM_GETLINK, 0, _LinkMessage, index=ifindex)
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
            f"{name} has no MAC address: nobody solicits there, and there is nothing to answer",
            "name the Ethernet interface that faces the upstream router; which of its addresses"
            f" {name} sends from is up to [interface.addresses] in a file for `ndxdp run -c`",
        )
    if not link.up and not down:
        raise NdxdpError(f"{name} is down", f"ip link set dev {name} up")
    return link


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
    here = [link.ifindex] + ([link.master] if link.master else [])
    own, gateway = OWN_LABEL, GATEWAY_LABEL
    owned: dict[Prefix, str] = {}
    for ifindex in here:
        owned |= {Prefix(address, 128): gateway for address in gateways(ifindex)}
    for ifindex in here:
        owned |= {Prefix(address, 128): own for address, _ in addresses(ifindex)}
    return owned


def link_local(ifindex: int) -> bytes:
    """The interface's link-local address, :: while it has none."""
    usable = (address for address, is_usable in addresses(ifindex) if is_usable)
    return next(usable, UNSPECIFIED)


def addresses(ifindex: int) -> Iterator[tuple[bytes, bool]]:
    """The interface's IPv6 addresses (16 bytes), and whether each is a usable link-local one."""
    for own in own_addresses(ifindex):
        usable = not own.flags & (_IFA_F_DADFAILED | _IFA_F_TENTATIVE)
        yield own.address, own.link_local and usable


def own_addresses(ifindex: int) -> list[OwnAddress]:
    """The interface's IPv6 addresses, with their lifetimes."""
    found = []
    with _told():
        try:
            messages = _ask(
                _RTM_GETADDR,
                _NLM_F_DUMP,
                _AddressMessage,
                family=socket.AF_INET6,
                index=ifindex,
            )
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            messages = []
    for message in messages:
        if message["index"] != ifindex:  # of a kernel that tells of all
            continue
        lifetimes = message.get_attr("IFA_CACHEINFO")
        far, near = message.get_attr("IFA_ADDRESS"), message.get_attr("IFA_LOCAL")
        found.append(
            OwnAddress(
                address=bytes(near or far),
                length=message["prefixlen"],
                flags=message.get_attr("IFA_FLAGS") or message["flags"],
                preferred=lifetimes["preferred"],
                valid=lifetimes["valid"],
                link_local=message["scope"] == _SCOPE_LINK,
                peer=bytes(far) if near else None,
                metric=message.get_attr("IFA_RT_PRIORITY") or 0,
                origin=message.get_attr("IFA_PROTO") or 0,
            )
        )
    return found


def set_preferred(ifindex: int, own: OwnAddress, preferred: int) -> None:
    """Give an address another preferred lifetime (s); all else is said as it was.

    The kernel takes what is not said for a wish to have it otherwise.
    """
    lifetimes = {"preferred": preferred, "valid": own.valid, "cstamp": 0, "tstamp": 0}
    attributes: list[tuple[str, object]] = [
        ("IFA_ADDRESS", own.peer or own.address),
        ("IFA_LOCAL", own.address),
        ("IFA_CACHEINFO", lifetimes),
        ("IFA_FLAGS", own.flags),
    ]
    if own.metric:
        attributes.append(("IFA_RT_PRIORITY", own.metric))
    if own.origin:
        attributes.append(("IFA_PROTO", own.origin))
    try:
        _ask(
            _RTM_NEWADDR,
            _NLM_F_REPLACE,
            _AddressMessage,
            attributes,
            family=socket.AF_INET6,
            prefixlen=own.length,
            flags=own.flags & 0xFF,
            index=ifindex,
        )
    except OSError as error:
        text = socket.inet_ntop(socket.AF_INET6, own.address)
        raise NdxdpError(
            f"the lifetime of {text} could not be set ({error.strerror})",
            "that needs CAP_NET_ADMIN, and an address that stays for a moment",
        ) from error


def address_labels(label: int) -> set[tuple[int, bytes]]:
    """Return the ifindex and address (16 bytes) of what has a label (`ip addrlabel`) alone."""
    with _told():
        messages = _ask(
            _RTM_GETADDRLABEL, _NLM_F_DUMP, _AddressLabelMessage, family=socket.AF_INET6
        )
    return {
        (message["index"], bytes(message.get_attr("IFAL_ADDRESS")))
        for message in messages
        if message["prefixlen"] == 128 and message.get_attr("IFAL_LABEL") == label
    }


def set_address_label(ifindex: int, address: bytes, label: int, *, present: bool) -> None:
    """Add or delete the label of an address (16 bytes) on one interface.

    RFC 6724 has the source's label match the destination's (section 5, rule 6).
    """
    kind, flags = _RTM_DELADDRLABEL, 0
    if present:
        kind, flags = _RTM_NEWADDRLABEL, _NLM_F_CREATE | _NLM_F_REPLACE
    try:
        _ask(
            kind,
            flags,
            _AddressLabelMessage,
            [("IFAL_ADDRESS", address), ("IFAL_LABEL", label)],
            family=socket.AF_INET6,
            prefixlen=128,
            index=ifindex,
        )
    except OSError as error:
        if not present and error.errno in (errno.ESRCH, errno.ENODEV):
            return
        text = socket.inet_ntop(socket.AF_INET6, address)
        raise NdxdpError(
            f"the address label of {text} could not be set ({error.strerror})",
            "that needs CAP_NET_ADMIN",
        ) from error


def neighbour(ifindex: int, address: bytes) -> Neighbour:
    """What the kernel knows of a neighbour (16 bytes)."""
    with _told():
        try:
            (found,) = _ask(
                _RTM_GETNEIGH,
                0,
                _NeighbourMessage,
                [("NDA_DST", address)],
                family=socket.AF_INET6,
                ifindex=ifindex,
            )
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
            return Neighbour(NudState.NONE, None)
    mac = found.get_attr("NDA_LLADDR")
    return Neighbour(NudState(found["state"]), bytes(mac) if mac else None)


def confirm_neighbour(ifindex: int, address: bytes, mac: bytes, *, router: bool) -> None:
    """Enter a neighbour as reachable, as the kernel does when it hears a solicited answer.

    Its MAC (6 bytes) takes the place of another one; the state ages like any other.
    """
    try:
        _ask(
            _RTM_NEWNEIGH,
            _NLM_F_CREATE | _NLM_F_REPLACE,
            _NeighbourMessage,
            [("NDA_DST", address), ("NDA_LLADDR", mac)],
            family=socket.AF_INET6,
            ifindex=ifindex,
            state=int(NudState.REACHABLE),
            flags=_NTF_ROUTER if router else 0,
        )
    except OSError as error:
        raise NdxdpError(
            f"the neighbour table could not be written ({error.strerror})",
            "gateway care needs CAP_NET_ADMIN",
        ) from error


def gateways(ifindex: int) -> set[bytes]:
    """Addresses (16 bytes) of the default routers behind an interface, in any table."""
    with Fib() as fib:
        return fib.gateways(ifindex)


def set_allmulti(ifindex: int, on: bool) -> None:
    """Receive every multicast group, or just those that were joined."""
    flags = IFF_ALLMULTI if on else 0
    try:
        _ask(_RTM_NEWLINK, 0, _LinkMessage, index=ifindex, flags=flags, change=IFF_ALLMULTI)
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
        _ask(_RTM_NEWLINK, 0, _LinkMessage, [("IFLA_LINKINFO", info)], index=ifindex)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return
        raise NdxdpError(
            f"the bridge's mcast_router could not be set ({error.strerror})",
            "run this as root, or with CAP_NET_ADMIN too",
        ) from error


def has_clsact(ifindex: int) -> bool:
    """The interface has a clsact qdisc."""
    with _told():
        return any(
            message["index"] == ifindex and message.get_attr("TCA_KIND") == "clsact"
            for message in _ask(_RTM_GETQDISC, _NLM_F_DUMP, _TrafficMessage, index=ifindex)
        )


def has_filters(ifindex: int) -> bool:
    """Somebody has a filter at the interface's clsact qdisc."""
    with _told():
        return any(
            True
            for parent in (0xFFFFFFF2, 0xFFFFFFF3)  # TC_H_CLSACT | TC_H_MIN_{INGRESS,EGRESS}
            for _ in _ask(
                _RTM_GETTFILTER, _NLM_F_DUMP, _TrafficMessage, index=ifindex, parent=parent
            )
        )


class Monitor:
    """Wakes its reader when links, IPv6 addresses, default, local or on-link IPv6 routes change.

    A change names the interface, not the news: the reader looks at the present state, so that a
    lost message costs nothing. fileno() is readable when drain() has something to return.
    """

    def __init__(self) -> None:
        self._interruptions = Interruptions()
        self._interrupted: set[int] = set()
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        attach_filter(self._socket, _that_concern_us())
        self._socket.bind((0, _RTMGRP_LINK | _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV6_ROUTE))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def drain(self) -> frozenset[int] | None:
        """Read all messages; return the interfaces they are about, None if all may be concerned."""
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

    def interrupted(self) -> frozenset[int]:
        """Return the interfaces that Interruptions has found since the last call."""
        found = frozenset(self._interrupted)
        self._interrupted.clear()
        return found

    def _read(self, data: bytes, concerned: set[int]) -> bool:
        """Note the interfaces; True for a route."""
        at, everybody = 0, False
        while at + 24 <= len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            if kind in (_RTM_NEWROUTE, _RTM_DELROUTE):
                everybody = True
            else:  # ifi_index and ifa_index lie at the same place
                concerned.add(struct.unpack_from("=i", data, at + 20)[0])
                if kind in (_RTM_NEWLINK, _RTM_DELLINK):
                    found = self._interruptions.of(data[at : at + length])
                    self._interrupted |= found
                    concerned |= found
            at += max((length + 3) & ~3, 16)
        return everybody


class Interruptions:
    """A reader of messages about links that finds interrupted ones. Pure.

    A look at the interface may not show any more that

    - the interface was without carrier, or down;
    - the kernel asked everything above to make itself known anew: a bond took another port, or a
      virtual machine moved to another host (NETDEV_BONDING_FAILOVER, NETDEV_NOTIFY_PEERS);
    - a port of a bridge lost its carrier or got it, while other ports kept the bridge's on. Ports
      of guests do not count: they come and go with each container.
    """

    def __init__(self) -> None:
        self._ports: dict[int, tuple[bool, int]] = {}

    def of(self, message: bytes) -> frozenset[int]:
        """Return the interfaces that a message reports as interrupted.

        message: an RTM_NEWLINK or RTM_DELLINK, from its nlmsghdr on.
        """
        if len(message) < 32 or message[16] != socket.AF_UNSPEC:  # AF_BRIDGE: a port's own state
            return frozenset()
        kind = struct.unpack_from("=H", message, 4)[0]
        index, flags = struct.unpack_from("=iI", message, 20)
        if kind == _RTM_DELLINK:
            self._ports.pop(index, None)
            return frozenset()
        attributes = dict(_attributes(message, 32))
        operstate = attributes.get(_IFLA_OPERSTATE, b"\0")[0]
        operational = is_operational(flags, operstate)
        master = _number(attributes.get(_IFLA_MASTER))
        event = _number(attributes.get(_IFLA_EVENT))
        if event in (_IFLA_EVENT_BONDING_FAILOVER, _IFLA_EVENT_NOTIFY_PEERS):
            return frozenset({index, master} - {0})
        found = set() if operational else {index}
        info = dict(_attributes(attributes.get(_IFLA_LINKINFO, b""), 0))
        own, of_port = (info.get(key, b"").rstrip(b"\0") for key in _IFLA_INFO_KINDS)
        if of_port != b"bridge" or own in _GUESTS:
            self._ports.pop(index, None)
            return frozenset(found)
        # A port that was not known counts as changed: that is announced once too often at most.
        state = operational, _number(attributes.get(_IFLA_CARRIER_UP_COUNT))
        if self._ports.get(index) != state:
            self._ports[index] = state
            found.add(master)
        return frozenset(found)


def _attributes(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Yield type, without its flags, and value of each attribute (struct rtattr) from an offset."""
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def _number(value: bytes | None) -> int:
    """An attribute of 32 bits; 0 where it is absent or malformed."""
    return int.from_bytes(value, sys.byteorder) if value is not None and len(value) == 4 else 0


def _that_concern_us() -> bytes:
    """Return classic BPF that takes all messages but those of most routes.

    Of routes, it takes the default ones, those that end at this host, and those that the kernel
    makes for an address or a router advertisement. Where a router's whole table comes and goes,
    the others would wake the daemon all the time: the kernel sends a message for each route.
    Loads are in network byte order, netlink's are the host's.
    """
    dst_len, protocol, kind = 17, 21, 23  # rtm_dst_len, rtm_protocol, rtm_type
    return assemble(
        (
            (LD_H, 0, 0, 4),  # nlmsg_type
            (JEQ, 1, 0, socket.htons(_RTM_NEWROUTE)),
            (JEQ, 0, 8, socket.htons(_RTM_DELROUTE)),
            (LD_B, 0, 0, dst_len),
            (JEQ, 6, 0, 0),
            (LD_B, 0, 0, protocol),
            (JEQ, 4, 0, _RTPROT_KERNEL),
            (JEQ, 3, 0, _RTPROT_RA),
            (LD_B, 0, 0, kind),
            (JEQ, 1, 0, RouteType.LOCAL),
            (JEQ, 0, 1, RouteType.ANYCAST),
            (RET, 0, 0, 65536),
            (RET, 0, 0, 0),
        )
    )
