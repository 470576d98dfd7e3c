"""The size of the kernel's table of IPv6 neighbours, which all network namespaces share."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import NamedTuple

from ndxdp.netlink.rtnetlink import Rtnetlink, attributes

_RTM_GETNEIGHTBL = 66
_HEADER = 4  # struct ndtmsg
_NDTA_NAME, _NDTA_THRESH3, _NDTA_CONFIG, _NDTA_STATS = 1, 4, 5, 7
_ENTRIES_AT = 4  # struct ndt_config
_FULLS_AT = 80  # struct ndt_stats: ndts_table_fulls
_ROOM = 4  # times the needed entries: failed entries of unused addresses need room, too
_MARGIN = 2  # a search takes two entries at once
_SYSCTL = "net.ipv6.neigh.default.gc_thresh"


class NeighbourTable(NamedTuple):
    """The size of the table.

    Attributes:
        most: The sysctl gc_thresh3, the number of entries for which there is room.
        entries: The entries of all network namespaces.
        overflows: How often the kernel had no room for an entry since the boot.
    """

    most: int
    entries: int
    overflows: int

    @property
    def is_nearly_full(self) -> bool:
        """True if more than four fifths of the room are taken."""
        return self.entries > self.most * 8 // 10

    @property
    def fill(self) -> str:
        """How full a nearly full table is, for messages."""
        how = "full" if self.entries >= self.most - _MARGIN else "nearly full"
        return f"{how} ({self.entries} entries of {self.most})"


def read() -> NeighbourTable | None:
    """Return the table's size; None if the kernel does not show it.

    Only the first network namespace has the sysctls. Netlink shows the limits in all of them.
    """
    body = struct.pack("=B3x", socket.AF_INET6)
    with contextlib.suppress(OSError), Rtnetlink() as kernel:
        # The table itself comes first. A message for each interface follows.
        found = attributes(kernel.first(_RTM_GETNEIGHTBL, body)[_HEADER:])
        if found.get(_NDTA_NAME, b"").rstrip(b"\0") == b"ndisc_cache" and _NDTA_CONFIG in found:
            (most,) = struct.unpack("=I", found[_NDTA_THRESH3])
            (entries,) = struct.unpack_from("=I", found[_NDTA_CONFIG], _ENTRIES_AT)
            (overflows,) = struct.unpack_from("=Q", found[_NDTA_STATS], _FULLS_AT)
            return NeighbourTable(most, entries, overflows)
    return None


def settings_for(needed: int) -> list[str]:
    """Return the sysctls, as for `sysctl -w`, that give a number of entries enough room."""
    room = 1 << (needed * _ROOM - 1).bit_length()
    return [f"{_SYSCTL}{number}={room >> 3 - number}" for number in (3, 2, 1)]
