"""The moment until which this host may answer for the shared addresses that it holds. Pure."""

from __future__ import annotations

from ndxdp.boot_clock import boot_ns


class LeaseClock:
    """The end of the host's lease, as the maps of all interfaces have it.

    Each sender of a frame for a leased address compares it with the clock right before.

    Attributes:
        lease: The id of the lease, or of the last one; 0 before the first.
        until: The end in nanoseconds of CLOCK_BOOTTIME; 0 without a lease.
    """

    def __init__(self) -> None:
        self.lease = self.until = 0

    @property
    def is_valid(self) -> bool:
        """True if the lease has not lapsed."""
        return boot_ns() < self.until
