"""Claims: messages by which a node shows that it uses an address, or wants to. Pure.

Times are seconds of one monotonic clock, MACs have 6 bytes, and a link is named by its interface's
index.
"""

from __future__ import annotations

from dataclasses import dataclass

from ndxdp.ndp.message import Solicitation

PATIENCE = 1.0
"""Seconds that a node waits for the answer to a solicitation: RETRANS_TIMER (RFC 4861 section 10).

After that, it has finished its DAD (RFC 4862 section 5.4), or solicits again.
"""


@dataclass(slots=True)
class Claim:
    """A claim that is checked.

    Attributes:
        ifindex: The link that it came by.
        mac: Its source MAC.
        dad: The solicitation, if the claim is DAD.
        heard: When it came.
    """

    ifindex: int
    mac: bytes
    dad: Solicitation | None
    heard: float

    def waits(self, now: float) -> bool:
        """Return True if the claim is DAD that has not finished yet."""
        return self.dad is not None and now <= self.heard + PATIENCE

    def is_same_probe(self, other: Claim) -> bool:
        """Return True if another claim is DAD by the same MAC, as this one."""
        return self.dad is not None and other.dad is not None and self.mac == other.mac
