"""VLAN tags that a NIC takes off frames before XDP sees them."""

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
    """VLAN interfaces on top of one whose driver or NIC takes their tags off (`rxvlan on`).

    kind: of the interface. A veth hands on frames whose tag its peer has beside them already,
    whatever its own features say.

    XDP on the interface takes their solicitations for its own. Empty where the tags stay in
    the frames. Of VLAN interfaces in other network namespaces it knows nothing.
    """
    stacked = vlans_on(interface)
    return stacked if stacked and (kind == "veth" or strips_tags(interface)) else []


def vlans_on(interface: str, config: Path = _VLANS) -> list[str]:
    """From /proc: a dump of all links would cost seconds on a host with thousands of them."""
    try:
        lines = config.read_text().splitlines()
    except FileNotFoundError:  # the kernel has no VLANs
        return []
    # `eth0.100       | 100  | eth0`, after two lines of headings
    fields = [[field.strip() for field in line.split("|")] for line in lines[2:]]
    return [field[0] for field in fields if len(field) == 3 and field[2] == interface]


def strips_tags(interface: str) -> bool:
    """`ethtool -k`'s rx-vlan-offload. False where the driver does not say."""
    value = array.array("I", (_ETHTOOL_GFLAGS, 0))
    request = struct.pack("@16sP16x", interface.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as asking:
        try:
            fcntl.ioctl(asking, _SIOCETHTOOL, request)
        except OSError:
            return False
    return bool(value[1] & _ETH_FLAG_RXVLAN)
