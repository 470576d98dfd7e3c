"""The kernel's count of ticks, which the program writes down, and CLOCK_MONOTONIC.

bpf_jiffies64() is a load, where bpf_ktime_get_ns() is a call of 20 to 30 ns. The kernel advances
jiffies by CLOCK_MONOTONIC, and begins 300 s before 32 bits are full (INITIAL_JIFFIES in
linux/jiffies.h). What passed before the first tick, less than a second, they do not know.
"""

from __future__ import annotations

import time

_CLOCK_MONOTONIC_COARSE = 6  # linux/time.h; its resolution is a tick
_TICK = round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e9)  # ns
_INITIAL = 2**32 - 300 * round(1e9 / _TICK)


def to_monotonic(ticks: int) -> int:
    """ns of CLOCK_MONOTONIC, to within a second; now, for what is yet to come."""
    return max(0, min((ticks - _INITIAL) * _TICK, time.monotonic_ns()))


def now() -> int:
    """What the program would write at present, to within a second."""
    return _INITIAL + time.monotonic_ns() // _TICK
