"""Tap and tun interfaces: network cards whose wire is a file descriptor. Taps run XDP."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETLINK = 0x400454CD
_IFF_TUN, _IFF_TAP, _IFF_NO_PI = 0x1, 0x2, 0x1000

ARPHRD_VOID = 0xFFFF
"""The type of OpenVZ's venet (linux/if_arp.h)."""


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


@contextmanager
def tun(name: str, kind: int | None = None) -> Iterator[int]:
    """Make an interface without a MAC; yields its end of the wire. kind: its ARPHRD_* type."""
    wire = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        request = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(wire, _TUNSETIFF, request)
        if kind is not None:
            fcntl.ioctl(wire, _TUNSETLINK, kind)
        yield wire
    finally:
        os.close(wire)
