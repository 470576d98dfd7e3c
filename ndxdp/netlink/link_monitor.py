"""Notification of changes of links, IPv6 addresses, routes and forwarding by netlink."""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import dataclass, field

from ndxdp.netlink.fib import RouteType
from ndxdp.netlink.link_names import NamedLink, named_link
from ndxdp.netlink.links import IFF_UP, is_operational
from ndxdp.netlink.rtnetlink import each_attribute, records
from ndxdp.netlink.subscription import Subscription
from ndxdp.sockets.cbpf import JEQ, LD_B, LD_H, RET, assemble

_RTMGRP_LINK = 0x1
_RTMGRP_IPV6_IFADDR = 0x100
_RTM_NEWLINK = 16
_RTM_DELLINK = 17
_RTM_DELADDR = 21
_RTM_NEWROUTE = 24
_RTMGRP_IPV6_ROUTE = 0x400
_RTM_DELROUTE = 25
_RTM_NEWNETCONF = 80
_RTNLGRP_IPV6_NETCONF = 25
_IFLA_OPERSTATE = 16
_IFLA_CARRIER_UP_COUNT = 47
_IFLA_EVENT = 44
_IFLA_EVENT_BONDING_FAILOVER = 3
_IFLA_LINKINFO = 18
_IFLA_EVENT_NOTIFY_PEERS = 4
_IFLA_INFO_KINDS = (1, 4)
_IFLA_MASTER = 10
_RTA_OIF, _RTA_MULTIPATH = 4, 9
_NETCONFA_IFINDEX = 1
_NLM_F_REPLACE = 0x100
_RTMSG_SIZE, _NEXT_HOP = 12, struct.Struct("=HBBi")  # struct rtnexthop
_HEADER_SIZE = 16  # of struct nlmsghdr
_BUFFER = 1 << 20  # bytes of messages that may wait, of which each takes about a thousand
_RTPROT_KERNEL = 2
_RTPROT_RA = 9

_GUESTS = (b"veth", b"tun")
"""Kinds of bridge ports that lead to containers and virtual machines, not to an upstream."""


@dataclass
class Changes:
    """The parts of the network that have changed. Read the present state from the kernel.

    Attributes:
        interfaces: The interfaces whose link, addresses, forwarding, default or on-link routes
            changed.
        names: The names of the interfaces whose link changed, alternative names included.
        local_routes: Local routes changed, or may have changed, of whichever interface.
        anything: Messages were lost, a route did not name its interface, or replaced a route of an
            unknown one: anything may have changed.
        lost: Messages were lost, so that `links` may lack some.
        links: The links that changed, by their index; None for a link that was deleted, or moved to
            another network namespace.
    """

    interfaces: set[int] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    local_routes: bool = False
    anything: bool = False
    lost: bool = False
    links: dict[int, NamedLink | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Return True if anything has changed."""
        return bool(self.interfaces) or self.local_routes or self.anything

    def concern(self, interfaces: frozenset[int]) -> bool:
        """Return True if one of these interfaces may have changed."""
        return self.anything or not self.interfaces.isdisjoint(interfaces)


class LinkMonitor(Subscription):
    """A netlink socket that reports changes of links, IPv6 addresses and important IPv6 routes.

    Important are default, local and on-link routes. fileno() is readable when drain() has something
    to return. The reader reads the present state from the kernel, so that lost messages do no harm.
    """

    def __init__(self) -> None:
        self._interruptions = Interruptions()
        self._interrupted: set[int] = set()
        super().__init__(
            _RTMGRP_LINK | _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV6_ROUTE,
            _relevant_messages(),
            buffer=_BUFFER,
            more=_RTNLGRP_IPV6_NETCONF,
        )

    def drain(self) -> Changes:
        """Read all messages; return what has changed."""
        changes = Changes()
        for data in self._pieces():
            if data is None:
                changes.anything = changes.lost = True
            else:
                self._read(data, changes)
        return changes

    def interrupted(self) -> frozenset[int]:
        """Return the interfaces that were interrupted since the last call (see Interruptions)."""
        found = frozenset(self._interrupted)
        self._interrupted.clear()
        return found

    def _read(self, data: bytes, changes: Changes) -> None:
        """Add what consecutive messages report to the changes."""
        at = 0
        while at + 20 <= len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            message = data[at : at + length]
            if kind in (_RTM_NEWROUTE, _RTM_DELROUTE):
                _read_route(message, changes)
            elif kind == _RTM_NEWNETCONF:
                index = _number(dict(each_attribute(message, 20)).get(_NETCONFA_IFINDEX))
                changes.interfaces.add(index)
            elif len(message) >= 24:  # ifi_index and ifa_index have the same offset.
                changes.interfaces.add(struct.unpack_from("=i", message, 20)[0])
                if kind in (_RTM_NEWLINK, _RTM_DELLINK) and len(message) >= 32:
                    link = named_link(message)
                    changes.names.update((link.name, *link.altnames))
                    # Messages of other families are about a bridge port, or about IPv6.
                    if message[_HEADER_SIZE] == socket.AF_UNSPEC and link.is_whole:
                        changes.links[link.ifindex] = link if kind == _RTM_NEWLINK else None
                    found = self._interruptions.of(message)
                    self._interrupted |= found
                    changes.interfaces |= found
                # An interface takes its local routes with it, about which the kernel may be silent
                # (net.ipv6.route.skip_notify_on_dev_down).
                if kind in (_RTM_DELLINK, _RTM_DELADDR) or (
                    kind == _RTM_NEWLINK and not _is_up(message)
                ):
                    changes.local_routes = True
            at += max((length + 3) & ~3, _HEADER_SIZE)


class Interruptions:
    """A detector of interrupted links in netlink messages. Pure.

    A link counts as interrupted in these cases, which its present state may no longer show:

    - The link had no carrier, or was down.
    - The kernel notified peers again: a bond switched to another port, or a virtual machine moved
      to another host (NETDEV_BONDING_FAILOVER, NETDEV_NOTIFY_PEERS).
    - A port of a bridge lost or got its carrier while other ports kept the carrier of the bridge.
      Ports of guests are ignored, because each container start or stop changes them.
    """

    def __init__(self) -> None:
        self._ports: dict[int, tuple[bool, int]] = {}

    def of(self, message: bytes) -> frozenset[int]:
        """Return the interfaces that were interrupted according to a message.

        Args:
            message: An RTM_NEWLINK or RTM_DELLINK message with its nlmsghdr.
        """
        # AF_BRIDGE messages have the state of a bridge port, not of a link.
        if len(message) < 32 or message[16] != socket.AF_UNSPEC:
            return frozenset()
        kind = struct.unpack_from("=H", message, 4)[0]
        index, flags = struct.unpack_from("=iI", message, 20)
        if kind == _RTM_DELLINK:
            self._ports.pop(index, None)
            return frozenset()
        attributes = dict(each_attribute(message, 32))
        operstate = attributes.get(_IFLA_OPERSTATE, b"\0")[0]
        operational = is_operational(flags, operstate)
        master = _number(attributes.get(_IFLA_MASTER))
        event = _number(attributes.get(_IFLA_EVENT))
        if event in (_IFLA_EVENT_BONDING_FAILOVER, _IFLA_EVENT_NOTIFY_PEERS):
            return frozenset({index, master} - {0})
        found = set() if operational else {index}
        info = dict(each_attribute(attributes.get(_IFLA_LINKINFO, b""), 0))
        own, of_port = (info.get(key, b"").rstrip(b"\0") for key in _IFLA_INFO_KINDS)
        if of_port != b"bridge" or own in _GUESTS:
            self._ports.pop(index, None)
            return frozenset(found)
        # A new port counts as changed, which costs at most one superfluous announcement.
        state = operational, _number(attributes.get(_IFLA_CARRIER_UP_COUNT))
        if self._ports.get(index) != state:
            self._ports[index] = state
            found.add(master)
        return frozenset(found)


def _is_up(message: bytes) -> bool:
    """Return True if a link's message shows the interface administratively up."""
    return len(message) >= 28 and bool(struct.unpack_from("=I", message, 24)[0] & IFF_UP)


def _read_route(message: bytes, changes: Changes) -> None:
    """Add a route to the changes: a local one, or the interfaces of another one."""
    if len(message) < _HEADER_SIZE + _RTMSG_SIZE:
        return
    if message[_HEADER_SIZE + 7] in (RouteType.LOCAL, RouteType.ANYCAST):  # rtm_type
        changes.local_routes = True
        return
    route = dict(each_attribute(message, _HEADER_SIZE + _RTMSG_SIZE))
    found = {ifindex for (*_, ifindex), _ in records(route.get(_RTA_MULTIPATH, b""), _NEXT_HOP)}
    found |= {_number(route.get(_RTA_OIF))}
    found -= {0}
    changes.interfaces |= found
    # The kernel reports no route that is replaced by one of another interface.
    replaces = struct.unpack_from("=H", message, 6)[0] & _NLM_F_REPLACE
    changes.anything = changes.anything or not found or bool(replaces)


def _number(value: bytes | None) -> int:
    """Return a 32-bit attribute as a number; 0 if it is absent or malformed."""
    return int.from_bytes(value, sys.byteorder) if value is not None and len(value) == 4 else 0


def _relevant_messages() -> bytes:
    """Return a classic BPF program that drops the messages of unimportant routes.

    The program passes default routes, local routes, and routes that the kernel adds for an address
    or a router advertisement. A router that loads a whole routing table causes one message for each
    other route, which would wake the daemon all the time. BPF loads in network byte order, while
    netlink uses the host's.
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
