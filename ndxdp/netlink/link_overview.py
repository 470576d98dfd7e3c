"""All links of this network namespace at one moment, with what tells their purpose.

One dump, without pyroute2: a host may have thousands of links.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ndxdp.netlink.links import is_operational
from ndxdp.netlink.rtnetlink import (
    HEADER,
    LINK,
    RTM_GETLINK,
    WITHOUT_STATISTICS,
    Rtnetlink,
    attributes,
    text_of,
)

# linux/if_link.h, linux/if_arp.h, linux/if.h
_ARPHRD_ETHER = 1
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER, _IFLA_OPERSTATE, _IFLA_LINKINFO = 1, 3, 10, 16, 18
_INFO_KIND, _INFO_SLAVE_KIND = 1, 4
_PORTS = (b"bridge", b"bond", b"team")


class SeenLink(NamedTuple):
    """A link.

    Attributes:
        ifindex: The index.
        name: The name.
        kind: The kind, such as `bridge` or `wireguard`; "" for a physical interface.
        mac: The MAC, 6 bytes; empty without one, as on a tunnel.
        up: True if the link is administratively up.
        operational: True if the link is up and has carrier.
        master: The index of the bridge, bond or team that the link is a port of; 0 without one.
        is_loopback: True for the loopback interface.
    """

    ifindex: int
    name: str
    kind: str
    mac: bytes
    up: bool
    operational: bool
    master: int
    is_loopback: bool


def all_links() -> list[SeenLink]:
    """Return all links, by their index.

    Raises:
        OSError: The kernel refused the request.
    """
    with Rtnetlink() as kernel:
        messages = kernel.gather(RTM_GETLINK, LINK.pack(0, 0, 0, 0, 0) + WITHOUT_STATISTICS)
    found = {link.ifindex: link for link in map(_link_of, messages)}
    return [found[ifindex] for ifindex in sorted(found)]


def _link_of(message: bytes) -> SeenLink:
    _, hardware, ifindex, flags, _ = LINK.unpack_from(message, HEADER.size)
    link = attributes(message[HEADER.size + LINK.size :])
    info = attributes(link.get(_IFLA_LINKINFO, b""))
    mac = link.get(_IFLA_ADDRESS, b"")
    has_mac = hardware == _ARPHRD_ETHER and len(mac) == 6 and any(mac)
    is_port = info.get(_INFO_SLAVE_KIND, b"").rstrip(b"\0") in _PORTS
    master = link.get(_IFLA_MASTER)
    state = link.get(_IFLA_OPERSTATE, b"\0")[0]
    return SeenLink(
        ifindex,
        text_of(link.get(_IFLA_IFNAME)),
        text_of(info.get(_INFO_KIND)),
        mac if has_mac else b"",
        bool(flags & _IFF_UP),
        is_operational(flags, state),
        struct.unpack("=I", master)[0] if master and is_port else 0,
        bool(flags & _IFF_LOOPBACK),
    )
