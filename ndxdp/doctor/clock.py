"""The clock that leases are measured with: CLOCK_BOOTTIME, whose rate is that of CLOCK_MONOTONIC.

The time of day does not matter for leases. It matters for certificates only.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from ndxdp.doctor.finding import Finding, note, warning

_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")

_SAMPLE = 0.05  # seconds for which the rate is measured
_SLEW_MAX = 0.01
"""The part by which the rate may differ. Leases allow for a tenth of their length."""

_STANDS_STILL = ("kvm-clock",)
"""Clock sources that stand still while the hypervisor pauses the machine.

QEMU restores the clock of the moment of the pause (hw/i386/kvm/clock.c,
kvmclock_vm_state_change()).
"""

_INACCURATE = ("jiffies", "refined-jiffies")


@dataclass(frozen=True, slots=True)
class Facts:
    """The clock.

    Attributes:
        source: The clock source of the kernel; "" if it is unknown.
        rate: Seconds of CLOCK_MONOTONIC for each second of the clock source itself.
    """

    source: str
    rate: float


def gather() -> Facts:
    """Read the clock source, and measure the rate."""
    source = ""
    with contextlib.suppress(OSError):  # a container hides it
        source = _SOURCE.read_text().strip()
    begins = _both()
    time.sleep(_SAMPLE)
    ends = _both()
    return Facts(source, (ends[0] - begins[0]) / (ends[1] - begins[1]))


def _both() -> tuple[int, int]:
    """Return CLOCK_MONOTONIC and CLOCK_MONOTONIC_RAW at one moment, in ns.

    Of a few attempts, the quickest counts: another process may run in between.
    """
    best = (1 << 63, 0, 0)
    for _ in range(5):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        adjusted = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        best = min(best, (after - before, adjusted, (before + after) // 2))
    return best[1:]


def judge(facts: Facts, lease: int) -> list[Finding]:
    """Return findings about a clock by which a lease may end late.

    Args:
        facts: The clock.
        lease: The length of the lease in seconds.
    """
    found = []
    if facts.source in _STANDS_STILL:
        found.append(
            note(
                f"the clock of this virtual machine, {facts.source}, stands still while the machine"
                " is paused",
                "after a pause, this host may answer for shared addresses that others have taken"
                f" meanwhile, for up to {lease} s: drain it before snapshots that pause it",
            )
        )
    if facts.source in _INACCURATE:
        found.append(
            warning(
                f"the kernel has no better clock source than {facts.source}",
                "this host's lease of shared addresses may end later than others believe",
                "cat /sys/devices/system/clocksource/clocksource0/available_clocksource",
            )
        )
    difference = facts.rate - 1
    if abs(difference) > _SLEW_MAX:
        found.append(
            warning(
                f"the clock runs {abs(difference):.1%} too {'fast' if difference > 0 else 'slow'}"
                " at present, to correct the time of day",
                "this host's lease of shared addresses may end later than others believe",
                "timedatectl timesync-status || chronyc tracking",
            )
        )
    return found
