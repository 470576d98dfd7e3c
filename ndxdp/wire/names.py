"""Names of interfaces, by calls that take a microsecond.

An interface has one name, and any number of alternative ones (`ip link property add dev eth0
altname wan`), by which the kernel finds it as well.
"""

from __future__ import annotations

import socket


def index_of(name: str) -> int:
    """Return the ifindex of the interface that has a name; 0 if none has."""
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
