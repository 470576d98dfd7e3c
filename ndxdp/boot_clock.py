"""CLOCK_BOOTTIME as BPF programs read it, which a time namespace shifts for processes."""

from __future__ import annotations

import functools
import time
from pathlib import Path

_OFFSETS = Path("/proc/self/timens_offsets")
"""The offsets of this process's time namespace: clock, seconds, ns; see time_namespaces(7)."""


def boot_ns() -> int:
    """Return the time since the boot in ns, suspended time included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - _offset()


@functools.cache
def _offset() -> int:
    """Return by how many ns this process's clock is ahead of the kernel's."""
    try:
        lines = _OFFSETS.read_text().splitlines()
    except OSError:  # the kernel has no time namespaces
        return 0
    for clock, seconds, nanoseconds in map(str.split, lines):
        if clock == "boottime":
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return 0
