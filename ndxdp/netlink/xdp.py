"""The XDP programs of an interface, read by rtnetlink; reading needs no privilege.

libbpf asks the kernel for the interface's features with each query, which takes ten times as long.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import NamedTuple

from ndxdp.netlink.rtnetlink import Rtnetlink, attribute, attributes

# linux/rtnetlink.h, linux/if_link.h
_RTM_GETLINK = 18
_IFLA_EXT_MASK, _IFLA_XDP = 29, 43
_IFLA_XDP_DRV_PROG_ID, _IFLA_XDP_SKB_PROG_ID, _IFLA_XDP_HW_PROG_ID = 5, 6, 7
_RTEXT_FILTER_SKIP_STATS = 1 << 3
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: the index is the third field
_U32 = struct.Struct("=I")


class XdpPrograms(NamedTuple):
    """The ids of XDP programs by mode, in the order in which the kernel runs them; 0 for none."""

    offloaded: int = 0
    native: int = 0
    generic: int = 0


def programs(ifindex: int) -> XdpPrograms:
    """Return the ids of the XDP programs on an interface; none if it does not exist."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0)
    body += attribute(_IFLA_EXT_MASK, _U32.pack(_RTEXT_FILTER_SKIP_STATS))
    with Rtnetlink() as kernel:
        try:
            (link,) = kernel.ask(_RTM_GETLINK, 0, body)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.EINVAL):
                return XdpPrograms()
            raise
    xdp = attributes(attributes(link[_LINK.size :]).get(_IFLA_XDP, b""))
    kinds = (_IFLA_XDP_HW_PROG_ID, _IFLA_XDP_DRV_PROG_ID, _IFLA_XDP_SKB_PROG_ID)
    return XdpPrograms(*(_U32.unpack(xdp[kind])[0] if kind in xdp else 0 for kind in kinds))


def program_ids(ifindex: int) -> list[int]:
    """Return the ids of the XDP programs on an interface, in any mode, sorted."""
    return sorted({program for program in programs(ifindex) if program})
