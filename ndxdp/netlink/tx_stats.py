"""Counters of the kernel and of drivers for frames that were not sent."""

from __future__ import annotations

import array
import fcntl
import re
import socket
import struct
from pathlib import Path
from typing import NamedTuple

# /sys/class/net would show the network namespace in which /sys was mounted.
_COUNTERS = Path("/proc/thread-self/net/dev")

# linux/sockios.h, linux/ethtool.h
_SIOCETHTOOL = 0x8946
_ETHTOOL_GSTRINGS, _ETHTOOL_GSTATS, _ETHTOOL_GSSET_INFO = 0x1B, 0x1D, 0x37
_ETH_SS_STATS = 1
_NAME = 32  # bytes, ETH_GSTRING_LEN
_COUNTERS_MAX = 65536  # more than a driver with a thousand queues has

_FAILED = re.compile(rb"xdp_tx_(err|errors|drop|drops|full)$")


class Transmit(NamedTuple):
    """Frames of an interface that were not sent, as `ip -s link` shows them."""

    errors: int
    dropped: int


def transmitted() -> dict[str, Transmit]:
    """Return the frames that were not sent, by interface of this network namespace."""
    found = {}
    for line in _COUNTERS.read_text().splitlines()[2:]:  # after two lines of headings
        name, _, numbers = line.partition(":")
        fields = numbers.split()
        found[name.strip()] = Transmit(int(fields[10]), int(fields[11]))
    return found


def xdp_failures(interface: str) -> int | None:
    """Return how many answers of a native XDP program the driver did not send; None if unknown.

    veth counts them as `xdp_tx_errors`, virtio_net as `xdp_tx_drops`, mlx5 as `xdp_tx_err` and
    `xdp_tx_full`, each for every queue.
    """
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as opened:

        def ask(request: bytearray) -> None:
            buffer = array.array("B", request)
            packed = struct.pack("@16sP16x", interface.encode(), buffer.buffer_info()[0])
            fcntl.ioctl(opened, _SIOCETHTOOL, packed)
            request[:] = buffer.tobytes()

        try:
            size = bytearray(struct.pack("=IIQI", _ETHTOOL_GSSET_INFO, 0, 1 << _ETH_SS_STATS, 0))
            ask(size)
            (count,) = struct.unpack_from("=I", size, 16)
            if not 0 < count <= _COUNTERS_MAX:
                return None
            names = bytearray(12 + _NAME * count)
            struct.pack_into("=III", names, 0, _ETHTOOL_GSTRINGS, _ETH_SS_STATS, count)
            ask(names)
            values = bytearray(8 + 8 * count)
            struct.pack_into("=II", values, 0, _ETHTOOL_GSTATS, count)
            ask(values)
        except OSError:  # a driver without counters, or no such interface
            return None
    counters = struct.unpack_from(f"={count}Q", values, 8)
    failed = [
        counter
        for nth, counter in enumerate(counters)
        if _FAILED.search(names[12 + _NAME * nth :][:_NAME].rstrip(b"\0"))
    ]
    return sum(failed) if failed else None
