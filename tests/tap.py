"""A tap interface: a network card whose wire is a file descriptor. Its driver runs XDP."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x2, 0x1000


@contextmanager
def tap(name: str) -> Iterator[int]:
    """Make one; yields its end of the wire: a frame for each read() and write()."""
    wire = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI)
        fcntl.ioctl(wire, _TUNSETIFF, request)
        yield wire
    finally:
        os.close(wire)
