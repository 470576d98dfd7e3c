"""VLAN tags that a NIC or driver removes from frames before XDP sees them."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from pathlib import Path

_VLANS = Path("/proc/thread-self/net/vlan/config")
_SIOCETHTOOL = 0x8946
_ETHTOOL_GFLAGS = 0x25
_ETH_FLAG_RXVLAN = 1 << 8


def hidden_vlans(interface: str, kind: str) -> list[str]:
    """Return the VLAN interfaces on an interface whose tags are removed before XDP (`rxvlan on`).

    XDP mistakes solicitations in these VLANs for solicitations on the interface itself. The list is
    empty if the tags stay in the frames. VLAN interfaces in other network namespaces are not found.

    Args:
        interface: The interface's name.
        kind: The interface's kind. A veth receives frames whose tag its peer has removed already,
            whatever the features of the veth are.
    """
    stacked = vlans_on(interface)
    return stacked if stacked and (kind == "veth" or strips_tags(interface)) else []


def vlans_on(interface: str, config: Path = _VLANS) -> list[str]:
    """Return the VLAN interfaces on an interface.

    The list is read from /proc, because a netlink dump of thousands of links takes seconds.
    """
    try:
        lines = config.read_text().splitlines()
    except FileNotFoundError:  # no VLAN support in the kernel
        return []
    # `eth0.100       | 100  | eth0`, after two lines of headings
    fields = [[field.strip() for field in line.split("|")] for line in lines[2:]]
    return [field[0] for field in fields if len(field) == 3 and field[2] == interface]


def strips_tags(interface: str) -> bool:
    """Return `rx-vlan-offload` of `ethtool -k`; False if the driver does not report it."""
    value = array.array("I", (_ETHTOOL_GFLAGS, 0))
    request = struct.pack("@16sP16x", interface.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as opened:
        try:
            fcntl.ioctl(opened, _SIOCETHTOOL, request)
        except OSError:
            return False
    return bool(value[1] & _ETH_FLAG_RXVLAN)
