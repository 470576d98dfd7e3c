"""Conversion between jiffies, in which the program records a time, and CLOCK_MONOTONIC.

bpf_jiffies64() is a load; bpf_ktime_get_ns() is a call that takes 20 to 30 ns. The kernel advances
jiffies by CLOCK_MONOTONIC, from a value 300 s before an overflow of 32 bits (INITIAL_JIFFIES in
linux/jiffies.h). Jiffies do not count the time before the first tick, which is less than a second.
"""

from __future__ import annotations

import time

_CLOCK_MONOTONIC_COARSE = 6  # linux/time.h; its resolution is a tick
_TICK = round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e9)  # ns
_INITIAL = 2**32 - 300 * round(1e9 / _TICK)


def to_monotonic(ticks: int) -> int:
    """Return the ns of CLOCK_MONOTONIC, to within a second; a future time becomes now."""
    return max(0, min((ticks - _INITIAL) * _TICK, time.monotonic_ns()))


def now() -> int:
    """Return the present jiffies, to within a second."""
    return _INITIAL + time.monotonic_ns() // _TICK
