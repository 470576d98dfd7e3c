"""The XDP programs of an interface, read by rtnetlink; reading needs no privilege.

libbpf asks the kernel for the interface's features with each query, which takes ten times as long.
"""

from __future__ import annotations

import errno
import struct
from typing import NamedTuple

from ndxdp.netlink.rtnetlink import ask_link, attributes

# linux/rtnetlink.h, linux/if_link.h
_IFLA_XDP = 43
_IFLA_XDP_DRV_PROG_ID, _IFLA_XDP_SKB_PROG_ID, _IFLA_XDP_HW_PROG_ID = 5, 6, 7
_U32 = struct.Struct("=I")


class XdpPrograms(NamedTuple):
    """The ids of XDP programs by mode, in the order in which the kernel runs them; 0 for none."""

    offloaded: int = 0
    native: int = 0
    generic: int = 0


def programs(ifindex: int) -> XdpPrograms:
    """Return the ids of the XDP programs on an interface; none if it does not exist."""
    try:
        link = ask_link(ifindex).attributes
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EINVAL):
            return XdpPrograms()
        raise
    xdp = attributes(link.get(_IFLA_XDP, b""))
    kinds = (_IFLA_XDP_HW_PROG_ID, _IFLA_XDP_DRV_PROG_ID, _IFLA_XDP_SKB_PROG_ID)
    return XdpPrograms(*(_U32.unpack(xdp[kind])[0] if kind in xdp else 0 for kind in kinds))


def program_ids(ifindex: int) -> list[int]:
    """Return the ids of the XDP programs on an interface, in any mode, sorted."""
    return sorted({program for program in programs(ifindex) if program})
