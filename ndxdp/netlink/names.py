"""Fast lookup of interfaces by name: a call takes a microsecond.

An interface has one name and any number of alternative names (`ip link property add dev eth0
altname wan`); the kernel finds the interface by each of them.
"""

from __future__ import annotations

import socket

from ndxdp.netlink.rtnetlink import ask_link, attribute
from ndxdp.rules.interface_name import INTERFACE_MAX

_IFLA_ALT_IFNAME = 53  # linux/if_link.h


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
    named = attribute(_IFLA_ALT_IFNAME, name.encode() + b"\0")
    try:
        return ask_link(more=named).ifindex
    except (OSError, ValueError):
        return 0
