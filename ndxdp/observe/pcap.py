"""The classic pcap format, with nanoseconds, of Ethernet frames. Pure.

https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html: integers in the writer's order.
"""

from __future__ import annotations

import struct

_MAGIC = 0xA1B23C4D  # of times in ns
_VERSION = (2, 4)
_LINKTYPE_ETHERNET = 1
_SNAPLEN = 65535
_NS = 1_000_000_000


def header() -> bytes:
    """Return the header of a file."""
    return struct.pack("=IHHiIII", _MAGIC, *_VERSION, 0, 0, _SNAPLEN, _LINKTYPE_ETHERNET)


def record(time: int, frame: bytes, length: int) -> bytes:
    """Return the record of one frame.

    Args:
        time: Nanoseconds since the epoch.
        frame: The captured bytes, which may be fewer than the frame had.
        length: The length of the whole frame.
    """
    return struct.pack("=IIII", time // _NS, time % _NS, len(frame), length) + frame
