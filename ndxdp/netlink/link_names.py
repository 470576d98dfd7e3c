"""The names of all links, as the kernel's messages have them."""

from __future__ import annotations

from typing import NamedTuple

from ndxdp.errors import UsageError
from ndxdp.netlink.links import NO_MAC
from ndxdp.netlink.rtnetlink import (
    HEADER,
    LINK,
    RTM_GETLINK,
    WITHOUT_STATISTICS,
    Rtnetlink,
    each_attribute,
    text_of,
)
from ndxdp.rules.interface_name import check_interface

_ARPHRD_ETHER = 1
_IFF_LOOPBACK = 0x8
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_WIRELESS = 1, 3, 11
_IFLA_PROP_LIST, _IFLA_ALT_IFNAME = 52, 53


class NamedLink(NamedTuple):
    """A link with its names.

    Attributes:
        ifindex: The index.
        name: The name.
        altnames: The alternative names.
        has_mac: True for an Ethernet interface with a MAC.
        is_loopback: True for the loopback interface.
        is_whole: False if the kernel's message was about another matter, a wireless event, and had
            only the name.
    """

    ifindex: int
    name: str
    altnames: tuple[str, ...] = ()
    has_mac: bool = True
    is_loopback: bool = False
    is_whole: bool = True

    def unusable(self, *, keeps_addresses: bool) -> str:
        """Return why a pattern leaves the link alone; "" if ndxdp can work on the link.

        Args:
            keeps_addresses: ndxdp is only to keep the link's addresses, for which it needs no MAC.
        """
        if self.is_loopback:
            return "it is the loopback interface"
        if not self.has_mac and not keeps_addresses:
            return NO_MAC
        try:
            check_interface(self.name)
        except UsageError:
            return "no configuration can contain its name"
        return "no configuration can contain its name" if "\ufffd" in self.name else ""


def named_link(message: bytes) -> NamedLink:
    """Return the link of an RTM_NEWLINK or RTM_DELLINK message with its nlmsghdr."""
    _, kind, ifindex, flags, _ = LINK.unpack_from(message, HEADER.size)
    name, mac, altnames, is_whole = "", b"", list[str](), True
    for number, value in each_attribute(message, HEADER.size + LINK.size):
        if number == _IFLA_IFNAME:
            name = text_of(value)
        elif number == _IFLA_ADDRESS:
            mac = value
        elif number == _IFLA_PROP_LIST:
            properties = each_attribute(value, 0)
            altnames += [text_of(each) for key, each in properties if key == _IFLA_ALT_IFNAME]
        elif number == _IFLA_WIRELESS:
            is_whole = False
    has_mac = kind == _ARPHRD_ETHER and len(mac) == 6 and any(mac)
    is_loopback = bool(flags & _IFF_LOOPBACK)
    return NamedLink(ifindex, name, tuple(altnames), has_mac, is_loopback, is_whole)


def present_links() -> dict[int, NamedLink]:
    """Return all links of this network namespace by their index, in its order.

    A link that is deleted or renamed during the call may still be listed; a message follows.

    Raises:
        OSError: The kernel refused the request.
    """
    body = LINK.pack(0, 0, 0, 0, 0) + WITHOUT_STATISTICS
    with Rtnetlink() as kernel:
        found = [named_link(message) for message in kernel.gather(RTM_GETLINK, body)]
    return {link.ifindex: link for link in sorted(found, key=lambda link: link.ifindex)}
