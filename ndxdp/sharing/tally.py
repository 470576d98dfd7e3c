"""The counters of a share's learner. Pure."""

from __future__ import annotations

from ndxdp.runtime.share_report import REFUSALS

COUNTED = ("learned", "moved", "expired", "forgotten", "defended", "asked", "found", "announced")
"""The counters of runtime.share_report.COUNTERS that a learner keeps."""


class Tally:
    """Counters.

    Attributes:
        counters: The counters in COUNTED, by name.
        refused: How many claims were refused, by reason: those of REFUSALS.
    """

    def __init__(self) -> None:
        self.counters = dict.fromkeys(COUNTED, 0)
        self.refused = dict.fromkeys(REFUSALS, 0)

    def add(self, counter: str, number: int = 1) -> None:
        """Add to a counter."""
        self.counters[counter] += number

    def refuse(self, reason: str) -> None:
        """Count a refused claim."""
        self.refused[reason] += 1
