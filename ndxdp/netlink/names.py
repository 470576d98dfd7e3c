"""Fast lookup of interfaces by name: a call takes a microsecond.

An interface has one name and any number of alternative names (`ip link property add dev eth0
altname wan`); the kernel finds the interface by each of them.
"""

from __future__ import annotations

import socket
import struct

from ndxdp.netlink.rtnetlink import Rtnetlink, attribute
from ndxdp.rules.interface_name import INTERFACE_MAX

# linux/rtnetlink.h, linux/if_link.h
_RTM_GETLINK, _IFLA_ALT_IFNAME = 18, 53
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: the index is the third field


def index_of(name: str) -> int:
    """Return the ifindex of the interface with a name or alternative name; 0 without one."""
    if len(name.encode(errors="replace")) > INTERFACE_MAX:
        return _index_of_long(name)
    try:
        return socket.if_nametoindex(name)
    except (OSError, ValueError):  # ValueError: no interface can have the name
        return 0


def real_name(name: str) -> str:
    """Return the name of the interface with an alternative name; return other names unchanged."""
    try:
        return socket.if_indextoname(index_of(name))
    except OSError:
        return name


def _index_of_long(name: str) -> int:
    """Look up a long alternative name by netlink, because if_nametoindex() refuses long names."""
    body = _LINK.pack(0, 0, 0, 0, 0) + attribute(_IFLA_ALT_IFNAME, name.encode() + b"\0")
    try:
        with Rtnetlink() as kernel:
            (answer,) = kernel.ask(_RTM_GETLINK, 0, body)
    except (OSError, ValueError):
        return 0
    return int(_LINK.unpack_from(answer)[2])
