"""Names of interfaces, by calls that take a microsecond.

An interface has one name, and any number of alternative ones (`ip link property add dev eth0
altname wan`), by which the kernel finds it as well.
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
    """Return the ifindex of the interface that has a name; 0 if none has."""
    if len(name.encode(errors="replace")) > INTERFACE_MAX:
        return _index_of_long(name)
    try:
        return socket.if_nametoindex(name)
    except (OSError, ValueError):  # ValueError: no interface can have such a name
        return 0


def real_name(name: str) -> str:
    """Return the name of the interface that has an alternative name; any other name as it is."""
    try:
        return socket.if_indextoname(index_of(name))
    except OSError:
        return name


def _index_of_long(name: str) -> int:
    """Ask netlink, as the C library does not ask for names that are longer than an interface's."""
    body = _LINK.pack(0, 0, 0, 0, 0) + attribute(_IFLA_ALT_IFNAME, name.encode() + b"\0")
    try:
        with Rtnetlink() as kernel:
            (answer,) = kernel.ask(_RTM_GETLINK, 0, body)
    except (OSError, ValueError):
        return 0
    return int(_LINK.unpack_from(answer)[2])
